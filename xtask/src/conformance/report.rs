//! The suite's report, as far as the closing lines need it.
//!
//! Read line by line: the suite writes it with one writer, in one shape, and no more of YAML is needed.

/// One profile of a report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    name: String,
    core: Counts,
    extended: Counts,
    supported: usize,
    unsupported: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn all(&self) -> usize {
        self.passed + self.failed + self.skipped
    }

    fn count(&mut self, key: &str, value: usize) {
        match key {
            "Passed" => self.passed = value,
            "Failed" => self.failed = value,
            "Skipped" => self.skipped = value,
            _ => {}
        }
    }
}

impl Report {
    /// `conformance: MESH-HTTP core 7/7 extended 7/7 features 9/9`
    pub(super) fn say(&self) {
        println!(
            "conformance: {} core {}/{} extended {}/{} features {}/{}",
            self.name,
            self.core.passed,
            self.core.all(),
            self.extended.passed,
            self.extended.all(),
            self.supported,
            self.supported + self.unsupported
        );
    }
}

/// The profiles of a report, in its order.
pub(super) fn read(text: &str) -> Vec<Report> {
    let mut profiles = Vec::new();
    let mut current = Profile::default();
    let lines = text.lines().skip_while(|line| *line != "profiles:").skip(1);
    for line in lines.take_while(|line| line.starts_with([' ', '-'])) {
        if line.starts_with("- ") {
            profiles.extend(current.finish());
        }
        current.see(line.trim_start_matches(['-', ' ']), line.contains("- "));
    }
    profiles.extend(current.finish());
    profiles
}

/// The profile being read, and where in it.
#[derive(Default)]
struct Profile {
    report: Report,
    is_extended: bool,
    list: String,
}

impl Profile {
    fn finish(&mut self) -> Option<Report> {
        let read = std::mem::take(self).report;
        (!read.name.is_empty()).then_some(read)
    }

    fn see(&mut self, text: &str, is_item: bool) {
        let Some((key, value)) = text.split_once(':') else {
            if is_item {
                self.item();
            }
            return;
        };
        self.list = key.to_owned();
        match key {
            "core" => self.is_extended = false,
            "extended" => self.is_extended = true,
            "name" => self.report.name = value.trim().to_owned(),
            _ => {
                let counts = match self.is_extended {
                    true => &mut self.report.extended,
                    false => &mut self.report.core,
                };
                counts.count(key, value.trim().parse().unwrap_or_default());
            }
        }
    }

    fn item(&mut self) {
        match self.list.as_str() {
            "supportedFeatures" => self.report.supported += 1,
            "unsupportedFeatures" => self.report.unsupported += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Report, read};

    #[test]
    fn profiles_are_read() {
        let text = "kind: ConformanceReport\nmode: default\nprofiles:\n\
                    - core:\n    result: success\n    statistics:\n      Failed: 0\n      Passed: 7\n      Skipped: 0\n  \
                    extended:\n    result: failure\n    failedTests:\n    - MeshX\n    statistics:\n      Failed: 1\n      \
                    Passed: 6\n      Skipped: 0\n    supportedFeatures:\n    - A\n    - B\n    unsupportedFeatures:\n    \
                    - C\n  name: MESH-HTTP\n  summary: Core tests succeeded.\n\
                    - core:\n    result: success\n    statistics:\n      Failed: 0\n      Passed: 2\n      Skipped: 0\n  \
                    name: MESH-GRPC\n  summary: Core tests succeeded.\n";
        let profiles = read(text);
        assert_eq!(
            profiles[0],
            Report {
                name: "MESH-HTTP".into(),
                core: Counts {
                    passed: 7,
                    failed: 0,
                    skipped: 0
                },
                extended: Counts {
                    passed: 6,
                    failed: 1,
                    skipped: 0
                },
                supported: 2,
                unsupported: 1
            }
        );
        assert_eq!(profiles[1].name, "MESH-GRPC");
        assert_eq!(profiles[1].core.passed, 2);
        assert_eq!(profiles.len(), 2);
    }
}
