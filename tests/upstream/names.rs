//! A name server that has no address for the Resource API, or says nothing: the API is unreachable, as if it refused connections.

use std::net::UdpSocket;
use std::process::Command;
use std::{fs, thread};

use crate::world::process::write_program;
use crate::world::{World, loader_binary, pattern, skip};

#[derive(Clone, Copy, PartialEq)]
enum NameServer {
    /// Answers that no name exists.
    Empty,
    /// Never answers.
    Silent,
}

/// A world whose loader uses this name server. None if this process lacks the rights for that.
fn world(test: &str, server: NameServer) -> Option<(World, tempfile::TempDir)> {
    let address = format!("127.53.0.{}", server as u8 + 1);
    let directory = tempfile::tempdir().unwrap();
    let (resolv, program) = (directory.path().join("resolv.conf"), directory.path().join("loader"));
    fs::write(&resolv, format!("nameserver {address}\n")).unwrap();
    // In its own mount namespace the loader reads this file as /etc/resolv.conf, with glibc and with musl.
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"' {} \"$@\"\n",
        resolv.display(),
        loader_binary().display()
    );
    write_program(&program, &script);
    let works = Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    let (true, Ok(socket)) = (works, UdpSocket::bind((address.as_str(), 53))) else {
        skip(test, "it needs a mount namespace and port 53");
        return None;
    };
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            if server == NameServer::Empty {
                // Turns the question into the answer NXDOMAIN.
                (question[2], question[3]) = (0x81, 0x83);
                let _ = socket.send_to(&question[..length], client);
            }
        }
    });
    let world = World::with(|builder| builder.binary(&program).env("OFFLINE_HOURS", "24"));
    Some((world, directory))
}

fn is_unreachable(test: &str, server: NameServer, why: &str) {
    let Some((world, _directory)) = world(test, server) else { return };
    let bytes = pattern(200_000, 1);
    world.upload("m.bin", &bytes);
    world.loads("m.bin", &bytes);
    world.service.set_env("RESOURCE_API_URL", "http://api.loader.test:8080");
    world.service.restart();
    world.login();
    let log = world.service.log_text();
    let unreachable = format!("http://api.loader.test:8080 is unreachable ({why}");
    assert!(log.contains("logged in offline") && log.contains(&unreachable), "{log}");
    world.loads("m.bin", &bytes);
}

#[test]
fn a_name_that_does_not_exist_is_unreachable() {
    let test = "a_name_that_does_not_exist_is_unreachable";
    is_unreachable(test, NameServer::Empty, "failed to lookup address information: ");
}

#[test]
fn a_name_server_that_is_silent_makes_the_api_unreachable_within_the_connect_limit() {
    let test = "a_name_server_that_is_silent_makes_the_api_unreachable_within_the_connect_limit";
    is_unreachable(test, NameServer::Silent, "no address from the name server within 5 s)");
}
