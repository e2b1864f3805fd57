//! Logical messages: events of their source, of a stream of their own.

use connector::{Op, Result, RowExtras, SchemaNumber, Schemas, put_bytes};

use super::{Capture, Flow};
use crate::lsn::Lsn;

impl<S: Schemas> Capture<S> {
    pub(super) fn logical(&mut self, transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) -> Result<Flow> {
        let ours = prefix.starts_with("highwater.");
        if transactional {
            if ours || !self.begin_part()? {
                return Ok(Flow::On);
            }
        } else {
            if lsn <= self.resume {
                return Ok(Flow::On);
            }
            self.last = self.last.max(lsn);
            if ours {
                return Ok(Flow::On);
            }
            self.writer.begin(&lsn.to_bytes(), self.time, "", 0);
        }
        let number = self.messages_schema()?;
        let body = self.writer.open_row(number);
        for part in [Some(prefix.as_bytes()), std::str::from_utf8(content).ok().map(str::as_bytes)] {
            match part {
                Some(text) => {
                    body.push(2);
                    put_bytes(body, text);
                }
                None => body.push(0),
            }
        }
        if std::str::from_utf8(content).is_ok() {
            body.push(0);
        } else {
            body.push(2);
            put_bytes(body, content);
        }
        body.extend_from_slice(&[2, u8::from(transactional)]);
        self.writer.close_row(Op::Message, RowExtras::default());
        if transactional {
            return Ok(self.end_row());
        }
        self.writer.end();
        Ok(Flow::On)
    }

    fn messages_schema(&mut self) -> Result<SchemaNumber> {
        if let Some(number) = self.messages {
            return Ok(number);
        }
        let (number, change) = self.compiler.messages()?;
        self.state.extend(change);
        self.messages = Some(number);
        Ok(number)
    }
}
