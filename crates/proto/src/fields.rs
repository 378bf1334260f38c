//! Walks the fields of an encoded message without knowing its type.
//!
//! Generated decoders drop fields that they do not know. For a policy that would widen what it allows, so
//! [`crate::convert`] looks at the bytes themselves.

/// One field of an encoded message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub number: u64,
    /// The content of a length-delimited field; `None` for the other wire types.
    pub bytes: Option<&'a [u8]>,
}

/// The bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf")]
pub struct Malformed;

/// Iterates over the fields of `message`; ends after the first error.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// See [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let (number, wire_type) = (key >> 3, key & 7);
        let bytes = match wire_type {
            0 => self.varint().map(|_| None)?,
            1 => self.take(8).map(|_| None)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Some(self.take(len)?)
            }
            5 => self.take(4).map(|_| None)?,
            _ => return None,
        };
        (number != 0).then_some(Field { number, bytes })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_all_wire_types() {
        let message = [
            0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7,
            8,
        ];
        let found: Vec<_> = fields(&message)
            .map(|f| f.map(|f| (f.number, f.bytes)))
            .collect();
        assert_eq!(
            found,
            [
                Ok((1, None)),
                Ok((2, Some(&b"hi"[..]))),
                Ok((3, None)),
                Ok((4, None))
            ]
        );
    }

    #[test]
    fn garbage_ends_with_an_error() {
        for bad in [
            &[0x12, 0x05, b'x'][..],
            &[0x0b],
            &[0xff; 11],
            &[0x00, 0x00],
            &[0x08],
        ] {
            assert_eq!(fields(bad).last(), Some(Err(Malformed)), "{bad:?}");
        }
    }
}
