//! The image tags of an archive: from its manifest, or from docker's output.

use std::collections::BTreeMap;
use std::io::{self, Read};

use serde::Deserialize;

/// The largest manifest. An image takes a few hundred bytes.
const MAX_MANIFEST: u64 = 1024 * 1024;

/// An image in `manifest.json`, docker's own layout.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// `index.json`, the OCI layout.
#[derive(Deserialize)]
struct OciIndex {
    #[serde(default)]
    manifests: Vec<OciManifest>,
}

#[derive(Deserialize)]
struct OciManifest {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The tags in the manifests of a tar stream.
#[derive(Debug, Default)]
pub struct ManifestReader {
    docker: Vec<String>,
    oci: Vec<String>,
}

impl ManifestReader {
    /// Reads `source` to its end, without holding layers in memory.
    pub fn read(mut source: impl Read) -> io::Result<Self> {
        let mut found = Self::default();
        let mut archive = tar::Archive::new(&mut source);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path_bytes().into_owned();
            match name.strip_prefix(b"./").unwrap_or(&name) {
                b"manifest.json" => found.docker = docker_tags(&whole(&mut entry)?),
                b"index.json" => found.oci = oci_tags(&whole(&mut entry)?),
                _ => {}
            }
        }
        // The stream continues after the end of the tar.
        io::copy(&mut source, &mut io::sink())?;
        Ok(found)
    }

    /// The tags. Of an archive with both manifests, as docker writes today, docker's own names them as `docker load` does.
    pub fn tags(self) -> Vec<String> {
        if self.docker.is_empty() { self.oci } else { self.docker }
    }
}

fn whole(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    entry.take(MAX_MANIFEST).read_to_end(&mut json)?;
    Ok(json)
}

/// A malformed manifest has no tags; it is left to docker to refuse it.
fn docker_tags(json: &[u8]) -> Vec<String> {
    let images: Vec<DockerImage> = serde_json::from_slice(json).unwrap_or_default();
    images.into_iter().flat_map(|image| image.repo_tags.unwrap_or_default()).collect()
}

fn oci_tags(json: &[u8]) -> Vec<String> {
    let index = serde_json::from_slice(json).unwrap_or(OciIndex { manifests: Vec::new() });
    let name = |mut manifest: OciManifest| {
        // The first is a full name; the second may be a tag alone, which names no image.
        let whole = manifest.annotations.remove("io.containerd.image.name");
        whole.or_else(|| {
            manifest.annotations.remove("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']))
        })
    };
    index.manifests.into_iter().filter_map(name).collect()
}

/// The tags in docker's "Loaded image: name:tag" lines.
pub fn loaded_tags(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.trim().strip_prefix("Loaded image: ")).map(str::to_owned).collect()
}

/// The tag of an image reference such as `registry:5000/app:1.0`.
pub fn tag_of(reference: &str) -> Option<&str> {
    reference.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    const DOCKER: &[u8] = br#"[{"Config":"x","RepoTags":["app:1.0","reg:5000/a/b:2"],"Layers":[]},{"RepoTags":null}]"#;
    const OCI: &[u8] = br#"{"manifests":[{"annotations":{"io.containerd.image.name":"docker.io/library/app:1.0",
        "org.opencontainers.image.ref.name":"1.0"}},{"annotations":{"org.opencontainers.image.ref.name":"latest"}},{}]}"#;

    #[test]
    fn both_layouts_are_read_and_the_whole_stream_passes() {
        let layer = vec![7; 3_000_000];
        for (files, expected) in [
            (vec![("layer.tar", &layer[..]), ("manifest.json", DOCKER)], vec!["app:1.0", "reg:5000/a/b:2"]),
            (vec![("index.json", OCI), ("blobs/sha256/x", &layer[..])], vec!["docker.io/library/app:1.0"]),
            (vec![("./index.json", OCI), ("./manifest.json", DOCKER)], vec!["app:1.0", "reg:5000/a/b:2"]),
            (vec![("deep/manifest.json", DOCKER)], vec![]),
            (vec![("manifest.json", b"{nonsense".as_slice())], vec![]),
        ] {
            let mut stream = tar(&files);
            stream.extend([0; 4096]);
            let mut rest = &stream[..];
            assert_eq!(ManifestReader::read(&mut rest).unwrap().tags(), expected);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn a_truncated_tar_is_an_error() {
        let stream = tar(&[("layer", &[1; 5000]), ("manifest.json", DOCKER)]);
        assert!(ManifestReader::read(&stream[..3000]).is_err());
    }

    #[test]
    fn the_tag_of_a_reference_is_found() {
        for (reference, tag) in
            [("app:1.0", Some("1.0")), ("reg:5000/app", None), ("reg:5000/a/b:2", Some("2")), ("app", None)]
        {
            assert_eq!(tag_of(reference), tag);
        }
        assert_eq!(loaded_tags("Loaded image: a:1\nLoaded image ID: sha256:x\n Loaded image: b:2\r\n"), ["a:1", "b:2"]);
    }
}
