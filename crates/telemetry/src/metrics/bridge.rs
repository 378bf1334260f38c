//! The page of `/metrics` as OTLP: the same names, labels and numbers, so that whoever is pushed to and whoever scrapes see
//! the same.

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
        metric::Data, number_data_point::Value,
    },
};

use crate::export::text_attribute;

/// When what is counted began, and now: nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub start: u64,
    pub now: u64,
}

/// Reads a page of OpenMetrics that this program wrote. A line that is none is left out.
pub fn metrics(page: &str, times: Times) -> Vec<Metric> {
    let mut families: Vec<Metric> = Vec::new();
    let (mut help, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, text)| text);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split_once(' ').map_or("", |(_, kind)| kind);
        } else if !line.starts_with('#') {
            take(line, kind, help, times, &mut families);
        }
    }
    families
}

/// A sample: `name{labels} value`.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: &'a str,
}

fn take(
    line: &str,
    kind: &str,
    help: &str,
    times: Times,
    families: &mut Vec<Metric>,
) -> Option<()> {
    let mut sample = sample(line)?;
    let family = match kind {
        "histogram" => {
            let parts = ["_bucket", "_sum", "_count"];
            let base = parts.iter().find_map(|part| sample.name.strip_suffix(part));
            base.unwrap_or(sample.name)
        }
        _ => sample.name,
    };
    let is_same = families.last().is_some_and(|last| last.name == *family);
    if !is_same {
        families.push(Metric {
            name: family.to_owned(),
            description: help.to_owned(),
            data: Some(data(kind)),
            ..Metric::default()
        });
    }
    let metric = families.last_mut()?;
    let bound = take_bound(&mut sample);
    let attributes = attributes(&sample.labels);
    match metric.data.as_mut()? {
        Data::Sum(sum) => sum.data_points.push(number(&sample, attributes, times)?),
        Data::Gauge(gauge) => gauge.data_points.push(number(&sample, attributes, times)?),
        Data::Histogram(histogram) => {
            into_histogram(histogram, &sample, bound.as_deref(), attributes, times)?;
        }
        Data::ExponentialHistogram(_) | Data::Summary(_) => {}
    }
    Some(())
}

fn data(kind: &str) -> Data {
    let cumulative = AggregationTemporality::Cumulative.into();
    match kind {
        "counter" => Data::Sum(Sum {
            data_points: Vec::new(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        "histogram" => Data::Histogram(Histogram {
            data_points: Vec::new(),
            aggregation_temporality: cumulative,
        }),
        _ => Data::Gauge(Gauge::default()),
    }
}

fn number(sample: &Sample<'_>, attributes: Vec<KeyValue>, times: Times) -> Option<NumberDataPoint> {
    let value = match sample.value.parse::<i64>() {
        Ok(whole) => Value::AsInt(whole),
        Err(_not_whole) => Value::AsDouble(sample.value.parse().ok()?),
    };
    Some(NumberDataPoint {
        attributes,
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

/// Lines of one histogram follow each other: buckets, sum, count.
fn into_histogram(
    histogram: &mut Histogram,
    sample: &Sample<'_>,
    bound: Option<&str>,
    attributes: Vec<KeyValue>,
    times: Times,
) -> Option<()> {
    let is_same = histogram
        .data_points
        .last()
        .is_some_and(|last| last.attributes == attributes);
    if !is_same {
        histogram.data_points.push(HistogramDataPoint {
            attributes,
            start_time_unix_nano: times.start,
            time_unix_nano: times.now,
            ..HistogramDataPoint::default()
        });
    }
    let point = histogram.data_points.last_mut()?;
    match bound {
        Some(bound) => {
            let upto: u64 = sample.value.parse().ok()?;
            let before: u64 = point.bucket_counts.iter().sum();
            point.bucket_counts.push(upto.saturating_sub(before));
            if bound != "+Inf" {
                point.explicit_bounds.push(bound.parse().ok()?);
            }
        }
        None if sample.name.ends_with("_sum") => point.sum = Some(sample.value.parse().ok()?),
        None => point.count = sample.value.parse().ok()?,
    }
    Some(())
}

fn take_bound(sample: &mut Sample<'_>) -> Option<String> {
    let at = sample.labels.iter().position(|(name, _)| *name == "le")?;
    Some(sample.labels.remove(at).1)
}

fn attributes(labels: &[(&str, String)]) -> Vec<KeyValue> {
    labels
        .iter()
        .map(|(name, value)| text_attribute(name, value))
        .collect()
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let Some(open) = line.find('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Sample {
            name,
            labels: Vec::new(),
            value,
        });
    };
    let (name, mut rest) = (&line[..open], &line[open + 1..]);
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix("} ") {
            // An exemplar would follow.
            let value = value.split(' ').next()?;
            return Some(Sample {
                name,
                labels,
                value,
            });
        }
        let (label, after) = rest.split_once("=\"")?;
        let (value, after) = unescaped(after)?;
        labels.push((label, value));
        rest = after;
    }
}

/// A label's value up to its closing quote, and what follows.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { start: 1, now: 2 };

    const PAGE: &str = "# HELP a_things Things.\n# TYPE a_things counter\n\
        a_things_total{x=\"1\",y=\"q\\\"\\\\}\\n\"} 7\na_things_total{x=\"2\"} 9007199254740993\n\
        # HELP g G.\n# TYPE g gauge\ng -3\n\
        # HELP h H.\n# TYPE h histogram\n\
        h_bucket{a=\"b\",le=\"0.5\"} 1\nh_bucket{a=\"b\",le=\"1.0\"} 3\nh_bucket{a=\"b\",le=\"+Inf\"} 4\nh_sum{a=\"b\"} 2.5\nh_count{a=\"b\"} 4\n\
        # EOF\n";

    #[test]
    fn every_number_is_the_same() {
        let all = metrics(PAGE, TIMES);
        let names: Vec<&str> = all.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["a_things_total", "g", "h"]);
        let Some(Data::Sum(sum)) = &all[0].data else {
            panic!("{:?}", all[0])
        };
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(7)));
        assert_eq!(
            sum.data_points[0].attributes[1],
            text_attribute("y", "q\"\\}\n")
        );
        assert_eq!(
            sum.data_points[1].value,
            Some(Value::AsInt(9_007_199_254_740_993))
        );
        let Some(Data::Histogram(histogram)) = &all[2].data else {
            panic!("{:?}", all[2])
        };
        let point = &histogram.data_points[0];
        assert_eq!(point.bucket_counts, [1, 2, 1]);
        assert_eq!(point.explicit_bounds, [0.5, 1.0]);
        assert_eq!((point.sum, point.count), (Some(2.5), 4));
    }
}
