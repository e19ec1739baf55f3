//! The unlock where the `docker` command is podman's, as `podman-docker` installs it.

use std::process::Command;

use super::unlock::{FRAGMENT, Unlocker, packed, unique};
use crate::world::docker::saved_images;
use crate::world::process::write_program;
use crate::world::resource_api::ResourceApi;
use crate::world::service::{Service, ServiceBuilder};
use crate::world::skip;

/// A `docker` command that is podman, with a storage of its own.
pub(super) struct Podman(tempfile::TempDir);

impl Podman {
    pub(super) fn or_skip(test: &str) -> Option<Self> {
        if !Command::new("podman").arg("--version").output().is_ok_and(|output| output.status.success()) {
            skip(test, "podman is not installed");
            return None;
        }
        let podman = Self(tempfile::tempdir().unwrap());
        let (docker, at) = (podman.0.path().join("docker"), podman.0.path().display());
        let script = format!(
            "#!/bin/sh\nexec podman --root {at}/root --runroot {at}/run --tmpdir {at}/tmp --storage-driver vfs \"$@\"\n"
        );
        write_program(&docker, &script);
        Some(podman)
    }

    fn path(&self) -> String {
        format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap())
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0.path().join("docker"));
        command.args(arguments);
        command
    }

    fn has(&self, tag: &str) -> bool {
        self.command(&["image", "exists", tag]).status().unwrap().success()
    }

    pub(super) fn unlocker(&self, configure: impl FnOnce(ServiceBuilder) -> ServiceBuilder) -> Unlocker {
        let api = ResourceApi::start();
        api.set_key_fragment(FRAGMENT);
        let service = configure(Service::builder().api(&api).env("PATH", self.path())).start();
        Unlocker { api, service }
    }
}

#[test]
fn podman_loads_the_images_and_a_restart_finds_them() {
    let Some(podman) = Podman::or_skip("unlock with podman") else { return };
    for oci in [false, true] {
        let tag = unique(if oci { "podman-oci" } else { "podman" });
        let unlocker = podman.unlocker(|builder| builder);
        unlocker.archive(&packed(&saved_images(&[&tag], 1_000_000, oci)));
        assert!(!podman.has(&tag));
        unlocker.unlocks();
        assert!(podman.has(&tag));
        unlocker.service.restart();
        assert_eq!(unlocker.finish()["state"], "ready");
        unlocker.api.clear_requests();
        assert_eq!(unlocker.start()["state"], "ready");
        assert_eq!(unlocker.api.count("/binary-split"), 0);
    }
}

#[test]
fn podman_keeps_nothing_of_half_an_archive() {
    let Some(podman) = Podman::or_skip("unlock with podman") else { return };
    let unlocker = podman.unlocker(|builder| builder);
    let (first, second) = (unique("podman-half-a"), unique("podman-half-b"));
    let mut encrypted = packed(&saved_images(&[&first, &second], 5_000_000, false));
    let at = encrypted.len() * 3 / 4 / 16 * 16;
    encrypted[at] ^= 0xff;
    unlocker.archive(&encrypted);
    let error = unlocker.fails();
    assert!(error.contains("docker load failed"), "{error}");
    assert!(!podman.has(&first) && !podman.has(&second));
}
