//! TensorBoard event files: scalars and PNG pictures.
//!
//! A file is a sequence of records `length: u64 · masked crc32c(length) · data · masked crc32c(data)`; data is a
//! protobuf `Event { 1: wall_time f64, 2: step i64, 3: file_version, 5: Summary { 1: Value { 1: tag, 2: f32, 4: Image } } }`
//! (tensorflow/core/util/event.proto, framework/summary.proto; record format of lib/io/record_writer).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Appends events to one file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `folder`; TensorBoard reads all files of a folder together.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let path = folder.join(format!("events.out.tfevents.{:010}.{:06}", micros / 1_000_000, micros % 1_000_000));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let mut writer = Self { path, file };
        let mut event = Proto::default();
        event.double(1, now());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// Appends scalars of one step.
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Proto::default();
        for (tag, value) in values {
            let mut entry = Proto::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        self.event(step, &summary)
    }

    /// Appends a PNG picture.
    pub fn image(&mut self, step: u64, tag: &str, width: usize, height: usize, png: &[u8]) -> Result<()> {
        let mut image = Proto::default();
        image.varint(1, height as u64);
        image.varint(2, width as u64);
        image.varint(3, 3); // RGB
        image.bytes(4, png);
        let mut entry = Proto::default();
        entry.bytes(1, tag.as_bytes());
        entry.bytes(4, &image.0);
        let mut summary = Proto::default();
        summary.bytes(1, &entry.0);
        self.event(step, &summary)
    }

    fn event(&mut self, step: u64, summary: &Proto) -> Result<()> {
        let mut event = Proto::default();
        event.double(1, now());
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(data.len() + 16);
        out.extend_from_slice(&length);
        out.extend_from_slice(&masked_crc(&length).to_le_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.file.write_all(&out).map_err(Error::io(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_checksummed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalars(300, [("loss", 0.5), ("lr", 1e-3)]).unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let mut records = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let len = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let crc = |from: usize, to: usize| masked_crc(&bytes[from..to]).to_le_bytes();
            assert_eq!(bytes[at + 8..at + 12], crc(at, at + 8));
            assert_eq!(bytes[at + 12 + len..at + 16 + len], crc(at + 12, at + 12 + len));
            records.push(&bytes[at + 12..at + 12 + len]);
            at += 16 + len;
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // field 2 (step) as varint 300, then the summary with the tag and the float
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02]);
        let text = String::from_utf8_lossy(records[1]);
        assert!(text.contains("loss") && text.contains("lr"));
        assert!(records[1].windows(5).any(|w| w == [0x15, 0, 0, 0, 0x3f])); // 0.5f32
    }

    #[test]
    fn the_mask_of_a_known_checksum() {
        // crc32c("123456789") = 0xe3069283 (RFC 3720 appendix B.4)
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
