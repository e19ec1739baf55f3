//! `loader exec`: programs that open their models by path.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::world::process::{run_to_end, signal};
use crate::world::pty::Terminal;
use crate::world::{World, pattern, sha256_hex, skip};

const AT_MOST: Duration = Duration::from_secs(60);

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// `loader exec` with these models, their variables, and the program's command line.
fn exec(world: &World, models: &[(&str, &str)], program: &[&str]) -> Command {
    let mut command = world.service.command();
    command.arg("exec");
    for (name, variable) in models {
        command.arg("--model").arg(format!("{}/{name}={variable}", world.folder));
    }
    command.arg("--").args(program);
    command
}

fn run(world: &World, models: &[(&str, &str)], program: &[&str]) -> (Option<i32>, String, String) {
    said(&run_to_end(exec(world, models, program), &[], b"", AT_MOST))
}

#[test]
fn a_program_maps_its_model_and_cannot_change_it() {
    let world = World::new();
    let bytes = pattern(3_000_001, 1);
    world.upload("m.bin", &bytes);
    let script = "
import hashlib, mmap, os
path = os.environ['MODEL']
file = open(path, 'rb')
model = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(path, len(model), hashlib.sha256(model).hexdigest())
for change in (lambda fd: os.write(fd, b'x'), lambda fd: os.ftruncate(fd, 1), lambda fd: os.ftruncate(fd, 9000000),
               lambda fd: mmap.mmap(fd, 0)):
    try:
        change(os.open(path, os.O_RDWR))
        print('changed')
    except PermissionError:
        print('sealed')
";
    let (status, out, err) = run(&world, &[("m.bin", "MODEL")], &["python3", "-c", script]);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("/proc/self/fd/"), "{out}");
    assert!(lines[0].ends_with(&format!(" 3000001 {}", sha256_hex(&bytes))), "{out}");
    assert_eq!(lines[1..], ["sealed"; 4]);
}

#[test]
fn several_models_each_have_their_variable_and_can_be_read_again() {
    let world = World::new();
    let models = [pattern(1_000_000, 1), pattern(2_500_000, 2), pattern(1, 3), pattern(500_000, 4), pattern(40_000, 5)];
    let names: Vec<(String, String)> =
        (0..models.len()).map(|i| (format!("m={i}.bin"), format!("MODEL_{i}"))).collect();
    for ((name, _), bytes) in names.iter().zip(&models) {
        world.upload(name, bytes);
    }
    let names: Vec<(&str, &str)> = names.iter().map(|(name, variable)| (name.as_str(), variable.as_str())).collect();
    let script = "cat \"$MODEL_0\" \"$MODEL_1\" \"$MODEL_2\" \"$MODEL_3\" \"$MODEL_4\" \"$MODEL_0\"";
    let output = run_to_end(exec(&world, &names, &["sh", "-c", script]), &[], b"", AT_MOST);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == [&models.concat()[..], &models[0]].concat());
}

#[test]
fn standard_streams_exit_status_and_signals_are_those_of_the_program() {
    let world = World::new();
    world.upload("m.bin", b"a model");
    let models = [("m.bin", "M")];
    let output = run_to_end(exec(&world, &models, &["cat", "/dev/stdin"]), &[], b"typed", AT_MOST);
    assert_eq!(said(&output), (Some(0), "typed".into(), String::new()));
    // `--help` after the program's name is the program's.
    let (_, out, _) = run(&world, &models, &["sh", "-c", "echo \"$0\"; exit 7", "--help"]);
    assert_eq!(out, "--help\n");
    assert_eq!(run(&world, &models, &["sh", "-c", "exit 7"]).0, Some(7));
    let killed = run_to_end(exec(&world, &models, &["sh", "-c", "kill -USR1 $$"]), &[], b"", AT_MOST);
    assert_eq!(killed.status.signal(), Some(libc::SIGUSR1));

    // `loader exec` becomes the program, so signals reach it; and a closed pipe ends it like any other program.
    let mut child = exec(&world, &models, &["sh", "-c", "trap 'echo caught; exit 3' TERM; echo $$; read line"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), child.id().to_string());
    signal(child.id(), libc::SIGTERM);
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(run(&world, &models, &["sh", "-c", "yes | head -c 2"]).1, "y\n");
}

#[test]
fn a_model_that_fails_keeps_the_program_from_its_start() {
    let world = World::new();
    world.upload("m.bin", b"a model");
    let started = world.service.dir().join("started");
    let touch = ["touch", started.to_str().unwrap()];
    let (status, out, err) = run(&world, &[("m.bin", "M"), ("none.bin", "N")], &touch);
    assert_eq!((status, out.as_str()), (Some(125), ""), "{err}");
    assert!(err.starts_with(&format!("loader: {}/none.bin is not loaded: ", world.folder)), "{err}");
    world.service.kill();
    let (status, _, err) = run(&world, &[("m.bin", "M")], &touch);
    assert_eq!(status, Some(125));
    assert!(err.contains("is it running") && !started.exists(), "{err}");
    world.service.restart();
    world.login();
    assert_eq!(run(&world, &[("m.bin", "M")], &["/no/such/program"]).0, Some(127));
    assert_eq!(run(&world, &[("m.bin", "M")], &["no-such-program"]).0, Some(127));
    assert_eq!(run(&world, &[("m.bin", "M")], &["/proc/version"]).0, Some(126));
    let (status, out, _) = run(&world, &[("m.bin", "M")], &touch);
    assert!(status == Some(0) && out.is_empty() && started.exists());
}

#[test]
fn the_program_does_not_get_the_secrets() {
    let world = World::new();
    world.upload("m.bin", b"a model");
    let mut command = exec(&world, &[("m.bin", "M")], &["env"]);
    command.env("CLIENT_TOKEN", "opensesame").env("API_KEY_SALT", "pepper").env("HARDWARE_SALT_FILE", "/salt");
    let (status, out, err) = said(&run_to_end(command, &[], b"", AT_MOST));
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert!(out.contains("\nM=/proc/self/fd/") && out.contains("BIND_ADDR="), "{out}");
    for secret in ["CLIENT_TOKEN", "opensesame", "SALT", "pepper", "/salt"] {
        assert!(!out.contains(secret), "{out}");
    }
}

#[test]
fn at_a_terminal_it_is_shown_how_far_the_models_are() {
    let world = World::new();
    world.upload("m.bin", &pattern(1_000_000, 1));
    let mut terminal = Terminal::run(exec(&world, &[("m.bin", "M")], &["sh", "-c", "test -t 0 && wc -c <$M"]));
    assert!(terminal.wait().success(), "{}", terminal.shown());
    let shown = terminal.shown();
    let (bar, output) = shown.trim_end().split_once("\r\n").unwrap();
    assert!(bar.ends_with("loaded           [########################] 100 %  1.0 MB of 1.0 MB"), "{shown:?}");
    assert_eq!(output, "1000000");
}

/// The files that contain these bytes.
fn files_with(directory: &Path, needle: &[u8]) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| match path {
        path if path.is_dir() => files_with(&path, needle),
        path => {
            let has = memchr::memmem::find(&fs::read(&path).unwrap_or_default(), needle).is_some();
            if has { vec![path.display().to_string()] } else { Vec::new() }
        }
    });
    found.collect()
}

#[test]
fn no_plaintext_is_written_to_a_file() {
    let temporary = tempfile::tempdir().unwrap();
    let world = World::with(|builder| builder.env("TMPDIR", temporary.path()));
    let needle = b"a plaintext that must not be found in a file";
    world.upload("m.bin", &[&pattern(200_000, 1)[..], needle, &pattern(3_000_000, 2)].concat());
    world.forget("m.bin");
    let trace = tempfile::tempdir().unwrap();
    let trace = trace.path().join("trace");
    let inner = exec(&world, &[("m.bin", "M")], &["sh", "-c", "cat $M $M"]);
    let has_strace = Command::new("strace").arg("-V").output().is_ok();
    let command = if has_strace {
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-e",
            "trace=open,openat,creat,rename,renameat,renameat2,memfd_create,sendto,write",
            "-s",
            "16",
            "-o",
        ]);
        command.arg(&trace).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(inner.get_current_dir().unwrap());
        command
    } else {
        skip("no_plaintext_is_written_to_a_file: in part", "there is no strace");
        inner
    };
    let output = run_to_end(command, &[], b"", AT_MOST);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(memchr::memmem::find_iter(&output.stdout, needle).count(), 2);
    for directory in [world.service.dir(), temporary.path()] {
        assert_eq!(files_with(directory, needle), [""; 0]);
    }
    if has_strace {
        let trace = fs::read_to_string(&trace).unwrap();
        assert_eq!(trace.matches("memfd_create(").count(), 1, "{trace}");
        let writable = ["O_WRONLY", "O_RDWR", "O_CREAT", "creat(", "rename"];
        let opened = trace.lines().filter(|line| writable.iter().any(|word| line.contains(word)));
        let opened: Vec<&str> = opened.filter(|line| !line.contains("\"/dev/")).collect();
        assert_eq!(opened, [""; 0], "files were opened for writing");
    }
}
