//! An Avro schema: its text, and what it is known by.

use apache_avro::Schema;
use apache_avro::rabin::Rabin;

use crate::error::{Error, Result};

/// A schema that parses.
#[derive(Clone, Debug)]
pub struct AvroSchema {
    text: String,
    canonical: String,
    fingerprint: [u8; 8],
}

impl AvroSchema {
    /// Parses `text`, meant for `subject`.
    pub fn parse(subject: &str, text: &str) -> Result<Self> {
        let parsed = Schema::parse_str(text)
            .map_err(|error| Error::InvalidSchema { subject: subject.into(), source: Box::new(error) })?;
        let mut fingerprint = [0; 8];
        for (to, from) in fingerprint.iter_mut().zip(parsed.fingerprint::<Rabin>().bytes) {
            *to = from;
        }
        // Identity is the text without its white space, as Confluent has it:
        // the canonical form drops defaults and properties, which matter.
        let text = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(value) => value.to_string(),
            // `"int"` may be written without its quotes nowhere but here; keep what was given.
            Err(_) => text.to_owned(),
        };
        Ok(Self { text, canonical: parsed.canonical_form(), fingerprint })
    }

    /// The text, without white space between tokens: what makes two schemas one.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Avro's Parsing Canonical Form.
    /// <https://avro.apache.org/docs/1.12.0/specification/#parsing-canonical-form-for-schemas>
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// CRC-64-AVRO of the canonical form, little-endian as in single-object encoding.
    pub fn fingerprint(&self) -> [u8; 8] {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_make_another_schema_but_a_property_does() {
        let a = AvroSchema::parse("s", r#"{"type": "record", "name": "A", "fields": [{"name":"x","type":"int"}]}"#);
        let b = AvroSchema::parse("s", r#"{"type":"record","name":"A","fields":[{"name":"x","type":"int"}]}"#);
        let c = AvroSchema::parse("s", r#"{"type":"record","name":"A","fields":[{"name":"x","type":"int","p":1}]}"#);
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert_eq!(a.text(), b.text());
        assert_ne!(a.text(), c.text());
        assert_eq!((a.canonical(), a.fingerprint()), (c.canonical(), c.fingerprint()));
    }

    #[test]
    fn the_fingerprint_is_the_one_of_avros_specification() {
        // CRC-64-AVRO of "int", from the reference implementation's test data.
        let int = AvroSchema::parse("s", "\"int\"").unwrap();
        assert_eq!(i64::from_le_bytes(int.fingerprint()), 8_247_732_601_305_521_295);
    }

    #[test]
    fn what_is_no_schema_is_refused_by_subject() {
        let error = AvroSchema::parse("shop.public.orders.Value", r#"{"type":"record"}"#).unwrap_err();
        assert!(error.to_string().contains("shop.public.orders.Value"));
    }
}
