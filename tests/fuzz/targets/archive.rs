//! The archive of container images: any file at `IMAGES_PATH`, and any tar encrypted under the right key.
#![no_main]

use std::io::{Read, Write};

use libfuzzer_sys::fuzz_target;
use loader::binary_split::{Archive, ManifestReader};
use loader::security::{AesKey, EncryptWriter};

const FRAGMENT: &[u8] = b"fragment";

fn open(bytes: &[u8]) -> Option<Archive> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open(file.path(), FRAGMENT).ok()
}

fuzz_target!(|data: &[u8]| {
    // As it is: a foreign file.
    if let Some(archive) = open(data) {
        let _ = archive.into_reader().read_to_end(&mut Vec::new());
    }
    // As the plaintext of an archive.
    let mut writer = EncryptWriter::new(Vec::new(), &AesKey::from_secret(FRAGMENT)).unwrap();
    writer.write_all(data).unwrap();
    if let Some(archive) = open(&writer.finish().unwrap()) {
        let length = archive.plain_length();
        let mut plain = Vec::new();
        archive.into_reader().read_to_end(&mut plain).unwrap();
        assert!(plain == data && length == data.len() as u64);
    }
    if let Ok(manifest) = ManifestReader::read(data) {
        let _ = manifest.tags();
    }
});
