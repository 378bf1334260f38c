//! Messages of OTLP as bytes, written as they are recorded. A record made of the library's types is some fifty allocations,
//! which the thread that sends gives back; with an access log for each request, that was most of what recording cost.
//!
//! Field numbers: `opentelemetry/proto/{common,logs,trace,collector}/v1`. The tests read what is written here with the
//! library's types.

use bytes::{BufMut as _, Bytes};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// `KeyValue`, and the variants of `AnyValue`.
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING_VALUE: u32 = 1;
const INT_VALUE: u32 = 3;

/// The fields of one message. What is empty or zero is left out, as proto3 has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<u8>);

impl Fields {
    /// With room for so many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// A message of the library's.
    pub(super) fn of(message: &impl prost::Message) -> Self {
        Self(message.encode_to_vec())
    }

    /// An enumeration, or another number of variable length.
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            encode_key(field, WireType::Varint, &mut self.0);
            encode_varint(value, &mut self.0);
        }
    }

    pub(crate) fn fixed32(&mut self, field: u32, value: u32) {
        if value != 0 {
            encode_key(field, WireType::ThirtyTwoBit, &mut self.0);
            self.0.put_u32_le(value);
        }
    }

    pub(crate) fn fixed64(&mut self, field: u32, value: u64) {
        if value != 0 {
            encode_key(field, WireType::SixtyFourBit, &mut self.0);
            self.0.put_u64_le(value);
        }
    }

    pub(crate) fn bytes(&mut self, field: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.delimited(field, bytes);
        }
    }

    pub(crate) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    /// An `AnyValue` of text.
    pub(crate) fn any_text(&mut self, field: u32, text: &str) {
        self.begin(field, length(STRING_VALUE, text.len()));
        self.delimited(STRING_VALUE, text.as_bytes());
    }

    /// A `KeyValue` whose value is text.
    pub(crate) fn text_attribute(&mut self, field: u32, key: &str, value: &str) {
        let any = length(STRING_VALUE, value.len());
        self.begin(field, length(KEY, key.len()) + length(VALUE, any));
        self.delimited(KEY, key.as_bytes());
        self.any_text(VALUE, value);
    }

    /// A `KeyValue` whose value is a whole number.
    pub(crate) fn number_attribute(&mut self, field: u32, key: &str, value: i64) {
        // Two's complement, as int64 is sent.
        let value = u64::from_ne_bytes(value.to_ne_bytes());
        let any = 1 + encoded_len_varint(value);
        self.begin(field, length(KEY, key.len()) + length(VALUE, any));
        self.delimited(KEY, key.as_bytes());
        self.begin(VALUE, any);
        encode_key(INT_VALUE, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
    }

    /// A message inside, also one without fields.
    pub(crate) fn message(&mut self, field: u32, inner: &Self) {
        self.delimited(field, &inner.0);
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) {
        self.begin(field, bytes.len());
        self.0.put_slice(bytes);
    }

    /// Key and length of what follows.
    fn begin(&mut self, field: u32, bytes: usize) {
        encode_key(field, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes as u64, &mut self.0);
    }
}

/// Bytes of a field with so many bytes inside. All fields that are asked for here have a key of one byte.
fn length(field: u32, inside: usize) -> usize {
    debug_assert!(field < 16, "the key of field {field} is longer");
    1 + encoded_len_varint(inside as u64) + inside
}

/// The request of any of the three services around its items, which all number these alike: `ExportLogsServiceRequest`
/// {1: `ResourceLogs` {1: resource, 2: `ScopeLogs` {1: scope, 2: items}}}.
pub(super) fn request(resource: &Fields, scope: &Fields, items: &[Fields]) -> Bytes {
    let items_length: usize = items.iter().map(|item| length(2, item.0.len())).sum();
    let in_scope = length(1, scope.0.len()) + items_length;
    let in_resource = length(1, resource.0.len()) + length(2, in_scope);
    let mut request = Fields::with_capacity(length(1, in_resource));
    request.begin(1, in_resource);
    request.message(1, resource);
    request.begin(2, in_scope);
    request.message(1, scope);
    items.iter().for_each(|item| request.message(2, item));
    request.0.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest,
        common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
        logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
        resource::v1::Resource,
    };
    use prost::Message;

    use super::*;
    use crate::export::text_attribute;

    /// What the library reads in it.
    pub(crate) fn read<M: Message + Default>(fields: &Fields) -> M {
        M::decode(&*fields.0).unwrap()
    }

    fn number_attribute(key: &str, value: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue {
                value: Some(Value::IntValue(value)),
            }),
            ..KeyValue::default()
        }
    }

    #[test]
    fn every_kind_of_field_is_what_the_library_reads() {
        let long = "x".repeat(70_000);
        let mut fields = Fields::default();
        fields.fixed64(1, 7);
        fields.number(2, 9);
        fields.text(3, "");
        fields.any_text(5, "");
        fields.text_attribute(6, "", &long);
        fields.text_attribute(6, &long, "");
        for number in [i64::MIN, -1, 0, 127, 128, i64::MAX] {
            fields.number_attribute(6, "n", number);
        }
        fields.fixed32(8, 1);
        fields.bytes(9, &[1, 2]);
        let mut attributes = vec![text_attribute("", &long), text_attribute(&long, "")];
        let numbers = [i64::MIN, -1, 0, 127, 128, i64::MAX];
        attributes.extend(numbers.map(|number| number_attribute("n", number)));
        let expected = LogRecord {
            time_unix_nano: 7,
            severity_number: 9,
            body: Some(AnyValue {
                value: Some(Value::StringValue(String::new())),
            }),
            attributes,
            flags: 1,
            trace_id: vec![1, 2],
            ..LogRecord::default()
        };
        assert_eq!(read::<LogRecord>(&fields), expected);
    }

    #[test]
    fn a_request_has_its_items_in_order_in_one_resource_and_one_scope() {
        let resource = Resource {
            attributes: vec![text_attribute("service.name", "w")],
            ..Resource::default()
        };
        let scope = InstrumentationScope {
            name: "karst".to_owned(),
            ..InstrumentationScope::default()
        };
        for count in [0, 1, 3, 400] {
            let log_records: Vec<LogRecord> = (0..count)
                .map(|time| LogRecord {
                    time_unix_nano: time,
                    ..LogRecord::default()
                })
                .collect();
            let items: Vec<Fields> = log_records.iter().map(Fields::of).collect();
            let bytes = request(&Fields::of(&resource), &Fields::of(&scope), &items);
            let expected = ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs {
                    resource: Some(resource.clone()),
                    scope_logs: vec![ScopeLogs {
                        scope: Some(scope.clone()),
                        log_records,
                        ..ScopeLogs::default()
                    }],
                    ..ResourceLogs::default()
                }],
            };
            assert_eq!(ExportLogsServiceRequest::decode(bytes).unwrap(), expected);
        }
    }
}
