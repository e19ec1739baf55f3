//! The command line, the start and the stop.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::{World, pattern};

fn run(arguments: &[&str]) -> (i32, String, String) {
    run_with(arguments, &[])
}

fn run_with(arguments: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let builder = env.iter().fold(Service::builder(), |builder, (name, value)| builder.env(name, value));
    let output = builder.run(arguments, b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_names_the_commands_in_lines_that_fit_a_terminal() {
    let (status, out, _) = run(&["--help"]);
    assert_eq!(status, 0);
    for word in ["fingerprint", "healthcheck", "pack", "--version"] {
        assert!(out.contains(word), "{word}");
    }
    assert!(out.lines().all(|line| line.len() <= 120));
}

#[test]
fn version_is_that_of_the_package() {
    assert_eq!(run(&["--version"]), (0, format!("loader {}\n", env!("CARGO_PKG_VERSION")), String::new()));
}

#[test]
fn unknown_arguments_are_refused() {
    let (status, out, err) = run(&["serve", "--fast"]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("serve --fast") && err.contains("--help"), "{err}");
}

#[test]
fn fingerprint_prints_the_hardware_string() {
    let (status, out, _) = run(&["fingerprint"]);
    assert_eq!(status, 0);
    assert!(
        out.starts_with("CPU: ")
            && out.contains(". GPU: ")
            && out.contains(". Memory: ")
            && out.contains(". DriveSerial: "),
        "{out}"
    );
    assert_eq!(run_with(&["fingerprint"], &[("HARDWARE_ID", "box 7")]).1, "box 7\n");
}

#[test]
fn a_bad_value_stops_the_start_with_one_line_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    for (name, value) in [
        ("HANDLER_THREADS", "0"),
        ("LOG_LEVEL", "shout"),
        ("BIND_ADDR", "nowhere"),
        ("BIND_ADDR", "192.0.2.1:80"),
        ("BIND_ADDR", "unix:/no/such/directory/sock"),
        ("MAX_UPLOAD_BYTES", "-1"),
        ("MAX_UPLOAD_BYTES", "0"),
        ("MAX_CONNECTIONS", "0"),
        ("ALLOWED_HOSTS", "*"),
        ("CLIENT_TOKEN", ""),
        ("RESOURCE_API_URL", "api"),
        ("CDN_CONFIG_PATH", "/no/such/file"),
        ("CDN_CONFIG_PATH", "/"),
        ("CA_CERT_PATH", empty),
        ("JWT_PUBLIC_KEY_PATH", empty),
    ] {
        let (status, _, err) = run_with(&[], &[(name, value)]);
        assert_eq!(status, 2, "{name}={value}: {err}");
        let last: Vec<&str> = err.lines().filter(|line| line.starts_with("loader: ")).collect();
        assert!(last.len() == 1 && last[0].contains(name), "{name}={value}: {err}");
    }
}

#[test]
fn default_salts_are_warned_about() {
    let service = Service::builder().env("HARDWARE_SALT", "mine").start();
    let log = service.log_text();
    assert!(log.contains("API_KEY_SALT, RESOURCE_KEY_SALT: the default is public"), "{log}");
    let service =
        Service::builder().env("HARDWARE_SALT", "a").env("API_KEY_SALT", "b").env("RESOURCE_KEY_SALT", "c").start();
    assert!(!service.log_text().contains("the default is public"));
}

/// As docker mounts them in `/run/secrets`, and systemd in `$CREDENTIALS_DIRECTORY`.
#[test]
fn secrets_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let api = ResourceApi::start();
    api.put_file(
        "",
        "cdn.yaml",
        "host: http://127.0.0.1:9\ndownloader_access_key: a\n\
        downloader_access_secret: b\nuploader_access_key: c\nuploader_access_secret: d\n",
    );
    let service = Service::builder()
        .api(&api)
        .env("CLIENT_TOKEN_FILE", file("token", "open-sesame\n"))
        // The test's Resource API has these salts: with others, the CDN configuration could not be decrypted.
        .env("HARDWARE_SALT_FILE", file("hardware", "dev-hardware-salt\n"))
        .env("API_KEY_SALT_FILE", file("api_key", "dev-api-key-salt"))
        .env("RESOURCE_KEY_SALT_FILE", file("resource_key", "pepper"))
        .start();
    assert_eq!(service.get("/status").status, 401);
    let token = [("Authorization", "Bearer open-sesame")];
    assert_eq!(service.call("GET", "/status", &token, b"").unwrap().status, 200);
    // The commands read the token from the same file.
    let login = service.run_with(&["login", EMAIL, "--password-stdin"], PASSWORD.as_bytes());
    assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
    let log = service.log_text();
    assert!(log.contains("\"HARDWARE_SALT, API_KEY_SALT: the default is public") && !log.contains("pepper"), "{log}");

    let path = file("both", "x");
    let env = [("CLIENT_TOKEN", "x"), ("CLIENT_TOKEN_FILE", path.to_str().unwrap())];
    let (status, _, err) = run_with(&[], &env);
    assert_eq!(
        (status, err.as_str()),
        (2, "loader: CLIENT_TOKEN and CLIENT_TOKEN_FILE are both set; unset one of them\n")
    );
    let (status, _, err) = run_with(&[], &[("API_KEY_SALT_FILE", file("empty", "\n").to_str().unwrap())]);
    assert!(status == 2 && err.contains("API_KEY_SALT_FILE names ") && err.contains("which is empty"), "{err}");
}

#[test]
fn a_service_that_is_open_to_the_network_without_a_token_is_warned_about() {
    const WARNING: &str = "is open to the network and CLIENT_TOKEN is not set";
    let open = Service::builder().on_all_addresses().start();
    assert!(open.log_text().contains(WARNING), "{}", open.log_text());
    let guarded = Service::builder().on_all_addresses().env("CLIENT_TOKEN", "x").start();
    for service in [guarded, Service::builder().start(), Service::builder().unix().start()] {
        assert!(!service.log_text().contains(WARNING), "{}", service.log_text());
    }
}

#[test]
fn healthcheck_answers_by_its_exit_status() {
    for service in [Service::builder().start(), Service::builder().unix().start()] {
        let check = || run_with(&["healthcheck"], &[("BIND_ADDR", service.address())]);
        assert_eq!(check(), (0, String::new(), String::new()));
        service.kill();
        let (status, _, err) = check();
        assert_eq!(status, 1);
        assert!(err.contains("is not healthy"), "{err}");
    }
}

#[test]
fn sigterm_lets_running_transfers_finish() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(2_000_000, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(100_000), None);
    thread::scope(|scope| {
        let load = scope.spawn(|| world.service.load(&world.folder, "m.bin"));
        thread::sleep(Duration::from_millis(700));
        let started = Instant::now();
        assert_eq!(world.service.terminate().code(), Some(0));
        assert!(started.elapsed() > Duration::from_millis(500), "it did not wait");
        assert!(load.join().unwrap().body == bytes);
    });
}

#[test]
fn sigterm_cuts_what_does_not_finish_in_ten_seconds_and_leaves_no_temporary_file() {
    let world = World::new();
    let mut client = world.service.connect();
    let head = "POST /upload/m.bin HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n\r\n\
                --b\r\nContent-Disposition: form-data; name=data; filename=x\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&[1; 200_000]).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(std::fs::read_dir(world.service.cache_dir().join(".spool")).unwrap().count(), 1);
    let started = Instant::now();
    assert_eq!(world.service.terminate().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(13), "{:?}", started.elapsed());
    assert!(!world.service.cache_dir().join(".spool").exists());
}

#[test]
fn warnings_go_to_stderr_and_everything_to_the_file() {
    let service = Service::builder().start();
    service.post_json("/unlock", serde_json::json!({"email": "a", "password": "b"}));
    service.terminate();
    let files: Vec<_> = std::fs::read_dir(service.log_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let text = std::fs::read_to_string(&files[0]).unwrap();
    assert!(
        text.contains("level=info message=\"loader ") && text.contains("level=warn") && text.contains("stopped"),
        "{text}"
    );
}

#[test]
fn an_empty_log_dir_means_no_files() {
    let service = Service::builder().env("LOG_DIR", "").start();
    assert!(!service.log_dir().exists() && !service.dir().join("logs").exists());
}
