//! The commands that talk to the running service, as a technician uses them: over ssh, in scripts, and wrongly.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use crate::world::docker::saved_images;
use crate::world::process::write_program;
use crate::world::pty::Terminal;
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::service::{Service, ServiceBuilder};
use crate::world::tcp::free_port;
use crate::world::{World, protocol};

const CDN_YAML: &str = "host: http://127.0.0.1:9\ndownloader_access_key: a\ndownloader_access_secret: b\n\
                        uploader_access_key: c\nuploader_access_secret: d\n";

const FRAGMENT: &[u8] = b"the key fragment of these tests";

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A `docker` command that reads slowly, and then has every image.
fn with_docker(builder: ServiceBuilder, dir: &Path) -> ServiceBuilder {
    let docker = dir.join("docker");
    let script = "#!/bin/sh\n[ -z \"$ENVIRONMENT\" ] || env >>\"$ENVIRONMENT\"\ncase $1 in\nload) sleep 1; cat >/dev/null; sleep 1;;\nimage) echo sha256:1;;\n*) echo 1;;\nesac\n";
    write_program(&docker, script);
    builder.env("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()))
}

/// A service whose archive can be unlocked, or not.
fn unlocker(dir: &Path, fragment: &[u8]) -> (ResourceApi, Service) {
    let api = ResourceApi::start();
    api.set_key_fragment(FRAGMENT);
    let service = with_docker(Service::builder().api(&api), dir).start();
    let tar = saved_images(&["app:1.0"], 2_000_000, false);
    fs::write(service.images_path(), protocol::encrypt(&tar, fragment)).unwrap();
    (api, service)
}

#[test]
fn status_is_a_table_or_the_raw_answer() {
    for unix in [false, true] {
        let api = ResourceApi::start();
        api.put_file("", "cdn.yaml", CDN_YAML);
        let builder = Service::builder().api(&api).env("CLIENT_TOKEN", "opensesame");
        let service = if unix { builder.unix() } else { builder }.start();
        let login = said(&service.run_with(&["login", EMAIL, "--password-stdin"], PASSWORD.as_bytes()));
        assert_eq!(login.0, 0, "{}", login.2);
        let (status, out, err) = said(&service.run(&["status"]));
        assert_eq!((status, err.as_str()), (0, ""), "{out}");
        for line in [format!("service       healthy at {}", service.address()), "images        idle".into()] {
            assert!(out.lines().any(|found| found == line), "{line} in {out}");
        }
        assert!(out.contains("\nlogged in     ") && !out.contains("loader login"), "{out}");
        let (status, out, _) = said(&service.run(&["status", "--json"]));
        let raw = service.call("GET", "/status", &[("Authorization", "Bearer opensesame")], b"").unwrap();
        let (out, raw): (serde_json::Value, _) = (serde_json::from_str(&out).unwrap(), raw.json());
        assert_eq!((status, &out["authenticated"], &out["modelCacheDir"]), (0, &true.into(), &raw["modelCacheDir"]));
    }
    let (_, out, _) = said(&Service::builder().start().run(&["status"]));
    assert!(out.contains("logged in     no; run loader login"), "{out}");
}

#[test]
fn a_script_logs_in_with_the_password_on_standard_input() {
    let api = ResourceApi::start();
    api.put_file("", "cdn.yaml", CDN_YAML);
    let service = Service::builder().api(&api).start();
    let login = |arguments: &[&str], stdin: &str| said(&service.run_with(arguments, stdin.as_bytes()));
    let (status, out, err) = login(&["login", EMAIL, "--password-stdin"], "wrong horse\n");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains("Passwords do not match") && !err.contains("wrong horse"), "{err}");
    for (arguments, stdin) in [
        (["login", "--password-stdin", EMAIL], format!("{PASSWORD}\nnot this\n")),
        (["login", &format!("--email={EMAIL}"), "--password-stdin"], format!("{PASSWORD}\r\n")),
        (["login", EMAIL, "--password-stdin"], PASSWORD.to_owned()),
    ] {
        assert_eq!(login(&arguments, &stdin), (0, format!("logged in as {EMAIL}\n"), String::new()), "{stdin:?}");
    }
    assert!(!service.log_text().contains(PASSWORD));
}

#[test]
fn at_a_terminal_the_password_is_asked_for_and_not_shown() {
    let world = World::new();
    let mut command = world.service.command();
    command.arg("login");
    let mut terminal = Terminal::run(command);
    terminal.expect("Email: ");
    assert!(terminal.echoes());
    terminal.send(&format!("{EMAIL}\n"));
    terminal.expect("Password: ");
    // Suspended here, the program would leave a terminal without echo.
    assert!(!terminal.echoes() && !terminal.suspends());
    terminal.send(&format!("{PASSWORD}\n"));
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    assert!(
        shown.ends_with(&format!("Password: \r\nlogged in as {EMAIL}\r\n")) && !shown.contains(PASSWORD),
        "{shown:?}"
    );
    assert!(terminal.echoes() && terminal.suspends());
}

#[test]
fn ctrl_c_at_the_password_gives_the_terminal_its_echo_back() {
    let world = World::new();
    for (end, signal) in [("\u{3}", libc::SIGINT), ("\u{1c}", libc::SIGQUIT)] {
        let mut command = world.service.command();
        command.args(["login", EMAIL]);
        let mut terminal = Terminal::run(command);
        terminal.expect("Password: ");
        terminal.expect_echo(false);
        terminal.send(&format!("corr{end}"));
        assert_eq!(terminal.wait().signal(), Some(signal), "{}", terminal.shown());
        assert!(terminal.echoes());
    }
    // At the end of input there is no password; the echo is turned on again as well.
    let mut command = world.service.command();
    command.args(["login", EMAIL]);
    let mut terminal = Terminal::run(command);
    terminal.expect("Password: ");
    terminal.send("\u{4}");
    assert_eq!(terminal.wait().code(), Some(1));
    assert!(terminal.echoes());
}

#[test]
fn unlock_is_followed_with_a_bar_at_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let (_api, service) = unlocker(dir.path(), FRAGMENT);
    let mut command = service.command();
    command.args(["unlock", EMAIL]);
    let mut terminal = Terminal::run(command);
    terminal.expect("Password: ");
    terminal.send(&format!("{PASSWORD}\n"));
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    assert!(shown.contains("\r\u{1b}[Kloading_images") && shown.contains("[####"), "{shown:?}");
    assert!(
        shown.trim_end().rsplit('\r').next().unwrap().contains("ready            [########################] 100 %"),
        "{shown:?}"
    );
    assert!(shown.ends_with("\r\n") && terminal.echoes());
}

#[test]
fn unlock_is_followed_with_lines_elsewhere_and_fails_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let (_api, service) = unlocker(dir.path(), FRAGMENT);
    let unlock = || said(&service.run_with(&["unlock", EMAIL, "--password-stdin"], PASSWORD.as_bytes()));
    let (status, out, err) = unlock();
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let steps: Vec<&str> = out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(steps.ends_with(&["loading_images", "ready"]), "{out}");
    assert!(out.is_ascii() && !out.contains(['\r', '\u{1b}']) && out.lines().count() <= 5, "{out:?}");
    // The images are loaded already.
    assert_eq!(unlock(), (0, "ready\n".into(), String::new()));

    let (_api, service) = unlocker(dir.path(), b"another fragment");
    let unlock = |password: &str| said(&service.run_with(&["unlock", EMAIL, "--password-stdin"], password.as_bytes()));
    let (status, _, err) = unlock(PASSWORD);
    assert!(status == 1 && err.contains("key"), "{err}");
    let (status, _, err) = unlock("wrong horse");
    assert!(status == 1 && err.contains("Passwords do not match") && !err.contains("wrong horse"), "{err}");
    let (_, out, _) = said(&service.run(&["status"]));
    assert!(out.contains("images        error: login failed"), "{out}");
    fs::remove_file(service.images_path()).unwrap();
    assert_eq!(unlock(PASSWORD), (1, String::new(), "loader: Encrypted archive not found\n".into()));
}

/// Whoever can inspect the `docker` process could read the secrets there.
#[test]
fn docker_does_not_get_the_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let salt = dir.path().join("salt");
    fs::write(&salt, "pepper").unwrap();
    let api = ResourceApi::start();
    api.set_key_fragment(FRAGMENT);
    let builder = with_docker(Service::builder().api(&api), dir.path());
    let service = builder
        .env("CLIENT_TOKEN", "opensesame")
        .env("API_KEY_SALT", "paprika")
        .env("RESOURCE_KEY_SALT_FILE", &salt)
        .env("ENVIRONMENT", dir.path().join("environment"))
        .start();
    let tar = saved_images(&["app:1.0"], 20_000, false);
    fs::write(service.images_path(), protocol::encrypt(&tar, FRAGMENT)).unwrap();
    let unlock = said(&service.run_with(&["unlock", EMAIL, "--password-stdin"], PASSWORD.as_bytes()));
    assert_eq!(unlock.0, 0, "{}", unlock.2);
    let environment = fs::read_to_string(dir.path().join("environment")).unwrap();
    assert!(environment.contains("RESOURCE_API_URL="), "{environment}");
    for secret in ["CLIENT_TOKEN", "opensesame", "SALT", "paprika", "pepper"] {
        assert!(!environment.contains(secret), "{environment}");
    }
}

#[test]
fn pack_shows_a_bar_at_a_terminal_and_nothing_of_a_short_one_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), FRAGMENT).unwrap();
    fs::write(dir.path().join("in.tar"), vec![7; 30_000_000]).unwrap();
    let service = Service::builder().start();
    let arguments = ["pack", "--key-file", "key", "in.tar", "out.enc"];
    let mut command = service.command();
    command.args(arguments).current_dir(dir.path());
    let mut terminal = Terminal::run(command);
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    assert!(shown.ends_with("encrypted        [########################] 100 %  30.0 MB of 30.0 MB\r\n"), "{shown:?}");
    let mut command = service.command();
    assert_eq!(
        said(&command.args(arguments).current_dir(dir.path()).output().unwrap()),
        (0, String::new(), String::new())
    );
}

/// `pack` replaces an archive when the new one is complete, but must not replace a device or a pipe.
#[test]
fn pack_writes_into_a_pipe_that_has_a_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), FRAGMENT).unwrap();
    fs::write(dir.path().join("in.tar"), b"images").unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let service = Service::builder().start();
    let mut pack = service.command();
    pack.args(["pack", "--key-file", "key", "in.tar", "pipe"]).current_dir(dir.path());
    // Opened for both reading and writing, so that neither end waits for the other.
    let mut reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    assert_eq!(said(&pack.output().unwrap()), (0, String::new(), String::new()));
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo(), "a file took the pipe's place");
    let mut archive = [0; 32];
    reader.read_exact(&mut archive).unwrap();
    assert_eq!(protocol::decrypt(&archive, FRAGMENT).unwrap(), b"images");
}

/// Arguments, environment, exit status, and a part of the message.
type Mistake<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);

/// What a new user gets wrong: one line says what to do, from any directory.
#[test]
fn every_mistake_gets_one_line_that_helps() {
    let service = Service::builder().env("CLIENT_TOKEN", "opensesame").start();
    let api = ResourceApi::start();
    let address = service.address();
    let other = api.url().replace("http://", "");
    let nobody = format!("127.0.0.1:{}", free_port());
    let token: &[(&str, &str)] = &[("CLIENT_TOKEN", "opensesame"), ("BIND_ADDR", address)];
    let cases: &[Mistake] = &[
        (&["status"], &[("BIND_ADDR", &nobody)], 1, "is it running, with the same BIND_ADDR"),
        (&["login", "a@b"], &[("BIND_ADDR", &nobody)], 1, "is it running, with the same BIND_ADDR"),
        (&["unlock"], &[("BIND_ADDR", "unix:/no/such/socket")], 1, "is it running, with the same BIND_ADDR"),
        (&["healthcheck"], &[("BIND_ADDR", &nobody)], 1, "is not healthy"),
        (&["status"], &[("BIND_ADDR", &other)], 1, "is not the loader"),
        (&["status"], &[("BIND_ADDR", address)], 1, "demands its bearer token; set CLIENT_TOKEN"),
        (&["login", "a@b"], &[("BIND_ADDR", address), ("CLIENT_TOKEN", "x")], 1, "does not accept this CLIENT_TOKEN"),
        (&["status"], &[("BIND_ADDR", "nowhere")], 2, "BIND_ADDR is neither host:port"),
        // Variables that only the service reads do not matter to the commands.
        (
            &["status"],
            &[("BIND_ADDR", &nobody), ("CA_CERT_PATH", "/root/secret.pem"), ("LOG_LEVEL", "loud")],
            1,
            "is it running",
        ),
        (&["status", "--yaml"], &[], 2, "unknown arguments: --yaml; loader status [--json]"),
        (&["status", "me"], &[], 2, "loader status [--json]"),
        (&["login", "--fast"], &[], 2, "unknown option --fast; loader login [EMAIL]"),
        (&["login", "--email"], &[], 2, "--email needs an address; loader login"),
        (&["login", "a@b", "s3cret"], &[], 2, "one email only; the password is asked for"),
        (&["login", "a@b", "--password", "s3cret"], &[], 2, "is seen by every user"),
        (&["login", "a@b", "--password=s3cret"], &[], 2, "is seen by every user"),
        (&["unlock", "-x"], &[], 2, "unknown option -x; loader unlock [EMAIL]"),
        (&["login"], token, 2, "name the account's email"),
        (&["login", "a@b"], token, 2, "use ssh -t, or --password-stdin"),
        (&["login", "a@b", "--password-stdin"], token, 1, "the password is empty"),
        (&["fingerprint", "now"], &[], 2, "unknown arguments: now"),
        (&["healthcheck", "now"], &[], 2, "unknown arguments: now"),
        (&["pack"], &[], 2, "--key-file is missing; loader pack --key-file FILE"),
        (&["pack", "--key-file"], &[], 2, "--key-file needs a file"),
        (&["pack", "--key-file", "none"], &[], 1, "the key file none cannot be read: No such file"),
        (&["pack", "--key-file", "/proc/version", "none"], &[], 1, "the input none cannot be read: No such file"),
        (&["pack", "--key-file", "/proc/version", "/", "out"], &[], 1, "the input / cannot be read: Is a directory"),
        (&["pack", "--key-file", "/proc/version", "/dev/null"], &[], 1, "the input /dev/null is empty"),
        (
            &["pack", "--key-file", "/proc/version", "/proc/version", "no/out"],
            &[],
            1,
            "the output no/out cannot be written: No such file",
        ),
        (
            &["pack", "--key-file", "/proc/version", "/proc/version", "/proc/version"],
            &[],
            1,
            "the output /proc/version is the key file",
        ),
        (&["login-now"], &[], 2, "unknown arguments: login-now; see loader --help"),
        (&["--json"], &[], 2, "see loader --help"),
    ];
    for (arguments, env, expected, words) in cases {
        let builder = env.iter().fold(Service::builder(), |builder, (name, value)| builder.env(name, value));
        let started = Instant::now();
        let (status, out, err) = said(&builder.run(arguments, b""));
        assert_eq!((status, out.as_str()), (*expected, ""), "{arguments:?} {env:?}: {err}");
        assert!(err.starts_with("loader: ") && err.lines().count() == 1, "{arguments:?}: {err}");
        assert!(err.contains(words) && !err.contains("s3cret"), "{arguments:?}: {err}");
        assert!(started.elapsed() < Duration::from_secs(10), "{arguments:?}");
    }
}

#[test]
fn every_command_has_its_help() {
    for command in ["status", "login", "unlock", "fingerprint", "healthcheck", "pack"] {
        for option in ["--help", "-h"] {
            let (status, out, err) = said(&Service::builder().run(&[command, option], b""));
            assert_eq!((status, err.as_str()), (0, ""), "{command}");
            assert!(out.starts_with(&format!("Usage: loader {command}")), "{out}");
            assert!(out.lines().all(|line| line.len() <= 120), "{out}");
        }
        assert!(said(&Service::builder().run(&["--help"], b"")).1.contains(&format!("  loader {command}")));
    }
}
