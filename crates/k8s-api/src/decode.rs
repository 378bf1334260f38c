//! From JSON to objects, with the place of what is wrong and of what nobody reads.
//!
//! One deserializer that knows where it is, instead of layers around another: it is compiled once for each of hundreds of
//! Kubernetes' types, and layers would be a third of a controller's code.

use std::{cell::RefCell, fmt};

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor, value::StringDeserializer,
};
use serde_json::{Error, Map, Number, Value, map};

use crate::{Kind, Object};

/// A step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// Where something is, from the object itself inwards. Displays as `spec.rules[0].from`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(pub Vec<Step>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// What came of an object.
#[derive(Debug)]
pub struct Decoded {
    /// The object, or where it is wrong and how: naming what was expected.
    pub object: Result<Object, (Place, String)>,
    /// Fields that no type has, in the order of the object; at most [`UNKNOWN_MAX`].
    pub unknown: Vec<Place>,
}

/// Most unknown fields of one object that are told.
pub const UNKNOWN_MAX: usize = 64;

/// Reads an object of a kind that is known by its surroundings.
pub fn decode(kind: Kind, json: Value) -> Decoded {
    let track = RefCell::new(Track::default());
    let read = Object::deserialize(
        kind,
        At {
            json,
            track: &track,
        },
    );
    let Track {
        steps,
        failed,
        unknown,
    } = track.into_inner();
    Decoded {
        object: read.map_err(|error| {
            let place = failed.unwrap_or(Place(steps));
            (place, error.to_string())
        }),
        unknown,
    }
}

/// Where we are, and what was found.
#[derive(Default)]
struct Track {
    steps: Vec<Step>,
    /// Where the error came from that has not been caught since.
    failed: Option<Place>,
    unknown: Vec<Place>,
}

/// A value at a place.
struct At<'a> {
    json: Value,
    track: &'a RefCell<Track>,
}

impl<'a> At<'a> {
    /// Goes a step inwards for as long as `read` takes.
    fn inside<T>(
        track: &'a RefCell<Track>,
        step: Step,
        read: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        track.borrow_mut().steps.push(step);
        let read = read();
        let mut track = track.borrow_mut();
        match &read {
            Ok(_) => track.failed = None,
            Err(_) if track.failed.is_none() => track.failed = Some(Place(track.steps.clone())),
            Err(_) => {}
        }
        track.steps.pop();
        read
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match &self.json {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(number) => unexpected_number(number),
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        }
    }
}

fn unexpected_number(number: &Number) -> Unexpected<'static> {
    match (number.as_u64(), number.as_i64()) {
        (Some(value), _) => Unexpected::Unsigned(value),
        (None, Some(value)) => Unexpected::Signed(value),
        (None, None) => Unexpected::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

fn visit_number<'de, V: Visitor<'de>>(number: &Number, visitor: V) -> Result<V::Value, Error> {
    match (number.as_u64(), number.as_i64()) {
        (Some(value), _) => visitor.visit_u64(value),
        (None, Some(value)) => visitor.visit_i64(value),
        (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
    }
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.json {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(number) => visit_number(&number, visitor),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => {
                let all = items.len();
                let mut items = Items {
                    items: items.into_iter(),
                    next: 0,
                    track: self.track,
                };
                let value = visitor.visit_seq(&mut items)?;
                match items.items.len() {
                    0 => Ok(value),
                    _ => Err(Error::invalid_length(all, &"fewer elements in array")),
                }
            }
            Value::Object(fields) => {
                let all = fields.len();
                let mut fields = Fields {
                    fields: fields.into_iter(),
                    present: None,
                    track: self.track,
                };
                let value = visitor.visit_map(&mut fields)?;
                match fields.fields.len() {
                    0 => Ok(value),
                    _ => Err(Error::invalid_length(all, &"fewer elements in map")),
                }
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.json {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let track = self.track;
        match self.json {
            Value::String(name) => visitor.visit_enum(Variant {
                name,
                content: None,
                track,
            }),
            Value::Object(fields) if fields.len() == 1 => match single(fields) {
                Some((name, content)) => visitor.visit_enum(Variant {
                    name,
                    content: Some(content),
                    track,
                }),
                None => Err(Error::invalid_type(Unexpected::Map, &"a variant")),
            },
            _ => Err(Error::invalid_type(
                self.unexpected(),
                &"a text or a map of one field",
            )),
        }
    }

    /// Nobody reads the value: its place is an unknown field.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut track = self.track.borrow_mut();
        if track.unknown.len() < UNKNOWN_MAX {
            let place = Place(track.steps.clone());
            track.unknown.push(place);
        }
        drop(track);
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

fn single(fields: Map<String, Value>) -> Option<(String, Value)> {
    fields.into_iter().next()
}

struct Items<'a> {
    items: std::vec::IntoIter<Value>,
    next: usize,
    track: &'a RefCell<Track>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(json) = self.items.next() else {
            return Ok(None);
        };
        let (step, track) = (Step::Index(self.next), self.track);
        self.next += 1;
        At::inside(track, step, || seed.deserialize(At { json, track })).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Fields<'a> {
    fields: map::IntoIter,
    present: Option<(String, Value)>,
    track: &'a RefCell<Track>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.fields.next() else {
            return Ok(None);
        };
        let name = Name(key.clone());
        self.present = Some((key, value));
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, json)) = self.present.take() else {
            return Err(Error::custom("a value without its key"));
        };
        let track = self.track;
        At::inside(track, Step::Key(key), || {
            seed.deserialize(At { json, track })
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.fields.len())
    }
}

/// The name of a field, or the key of a map. JSON has texts alone for these, so a number is read from its text.
struct Name(String);

macro_rules! numbers_from_text {
    ($($method:ident $visit:ident $number:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0.parse::<$number>() {
                Ok(number) => visitor.$visit(number),
                Err(_) => visitor.visit_string(self.0),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Name {
    type Error = Error;

    numbers_from_text! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        StringDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

struct Variant<'a> {
    name: String,
    content: Option<Value>,
    track: &'a RefCell<Track>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content<'a>), Error> {
        let content = Content {
            name: self.name.clone(),
            content: self.content,
            track: self.track,
        };
        Ok((
            seed.deserialize(StringDeserializer::new(self.name))?,
            content,
        ))
    }
}

struct Content<'a> {
    name: String,
    content: Option<Value>,
    track: &'a RefCell<Track>,
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.content {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(Error::invalid_type(
                Unexpected::NewtypeVariant,
                &"a text alone",
            )),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let Some(json) = self.content else {
            return Err(Error::invalid_type(Unexpected::UnitVariant, &"a value"));
        };
        let track = self.track;
        At::inside(track, Step::Key(self.name), || {
            seed.deserialize(At { json, track })
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        let json = self.content.unwrap_or_default();
        let track = self.track;
        At::inside(track, Step::Key(self.name), || {
            At { json, track }.deserialize_any(visitor)
        })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.tuple_variant(0, visitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(kind: Kind, json: Value) -> (String, String) {
        let (place, message) = decode(kind, json).object.expect_err("must not be read");
        (place.to_string(), message)
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let policy = json!({"metadata": {"name": "p"},
            "spec": {"rules": [{}, {"to": [{"operation": {"ports": 80}}]}]}});
        let (place, message) = wrong(Kind::AuthorizationPolicy, policy);
        assert_eq!(place, "spec.rules[1].to[0].operation.ports");
        assert!(
            message.contains("80") && message.contains("sequence"),
            "{message}"
        );
        let (place, message) = wrong(
            Kind::AuthorizationPolicy,
            json!({"spec": {"action": "MAYBE"}}),
        );
        assert_eq!(place, "spec.action");
        assert!(message.contains("MAYBE"), "{message}");
        let (place, _) = wrong(Kind::Pod, json!(["no object"]));
        assert!(place.is_empty() || place == "[0]", "{place}");
    }

    #[test]
    fn unknown_fields_are_named_and_bounded() {
        let route = json!({"metadata": {"name": "r", "new": 1},
            "spec": {"rules": [{"matches": [{"cookies": []}]}]}});
        let decoded = decode(Kind::HttpRoute, route);
        assert!(decoded.object.is_ok());
        let places: Vec<String> = decoded.unknown.iter().map(ToString::to_string).collect();
        assert!(
            places.contains(&"spec.rules[0].matches[0].cookies".to_owned()),
            "{places:?}"
        );
        let many: Map<String, Value> = (0..1000).map(|n| (format!("x{n}"), Value::Null)).collect();
        let decoded = decode(Kind::AuthorizationPolicy, json!({"spec": many}));
        assert_eq!(decoded.unknown.len(), UNKNOWN_MAX);
    }

    #[test]
    fn the_key_of_a_map_may_be_a_number() {
        let policy = |port: &str| json!({"spec": {"portLevelMtls": {port: {"mode": "DISABLE"}}}});
        let decoded = decode(Kind::PeerAuthentication, policy("9001"));
        assert!(decoded.object.is_ok(), "{:?}", decoded.object);
        let (place, message) = wrong(Kind::PeerAuthentication, policy("https"));
        assert_eq!(place, "spec.portLevelMtls");
        assert!(message.contains("https"), "{message}");
    }

    #[test]
    fn what_is_written_comes_back() {
        let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 3},
                "livenessProbe": {"tcpSocket": {"port": 8080}}}]}});
        let Object::Pod(read) = decode(Kind::Pod, pod.clone()).object.unwrap() else {
            panic!("not a pod");
        };
        let plain: Box<k8s_openapi::api::core::v1::Pod> = serde_json::from_value(pod).unwrap();
        assert_eq!(read, plain);
    }
}
