//! The commands that move models, as a technician and a script use them: `load`, `upload`, `models`, `remove`, `completions`.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::world::pty::Terminal;
use crate::world::s3_fault::Fault;
use crate::world::service::Service;
use crate::world::{World, eventually, pattern};

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn ok() -> (i32, String, String) {
    (0, String::new(), String::new())
}

/// The model's full name, in the world's folder.
fn full(world: &World, name: &str) -> String {
    format!("{}/{name}", world.folder)
}

fn files_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_model_goes_through_pipes_and_files_byte_for_byte() {
    let world = World::new();
    let bytes = pattern(3_000_001, 1);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("in"), &bytes).unwrap();

    // From a pipe of unknown length, from a file, and from a file on standard input that is half read.
    let pipe = world.service.run_with(&["upload", &full(&world, "pipe.bin")], &bytes);
    assert_eq!(said(&pipe), ok());
    assert_eq!(said(&world.service.run(&["upload", &full(&world, "a file.bin"), &path("in")])), ok());
    let half = Command::new("sh")
        .args(["-c", "{ head -c 1000000 >/dev/null; \"$@\"; } <\"$0\"", &path("in")])
        .arg(world.service.command().get_program())
        .args(["upload", &full(&world, "half.bin"), "-"])
        .env("BIND_ADDR", world.service.address())
        .output();
    assert_eq!(said(&half.unwrap()), ok());

    for (name, expected) in [("pipe.bin", &bytes[..]), ("a file.bin", &bytes), ("half.bin", &bytes[1_000_000..])] {
        let out = world.service.run(&["load", &full(&world, name)]);
        assert!(out.status.success() && out.stderr.is_empty() && out.stdout == expected, "{name}");
        fs::write(path("out"), "what was there before").unwrap();
        assert_eq!(said(&world.service.run(&["load", &full(&world, name), &path("out")])), ok());
        assert!(fs::read(path("out")).unwrap() == expected, "{name}");
    }
    assert_eq!(files_in(dir.path()), ["in", "out"]);
}

#[test]
fn a_named_pipe_is_written_to_and_not_replaced() {
    let world = World::new();
    world.upload("m.bin", b"a model");
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    assert_eq!(said(&world.service.run(&["load", &full(&world, "m.bin"), pipe.to_str().unwrap()])), ok());
    let mut bytes = [0; 7];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"a model");
    assert_eq!(files_in(dir.path()), ["pipe"]);
}

#[test]
fn at_a_terminal_there_is_a_bar_and_no_model_on_the_screen() {
    let (world, proxy) = World::behind_proxy();
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = world.service.command();
        command.args(arguments).current_dir(dir.path());
        let mut terminal = Terminal::run(command);
        let status = terminal.wait();
        (status.code(), terminal.shown())
    };
    let bytes = pattern(4_000_000, 1);
    fs::write(dir.path().join("in"), &bytes).unwrap();
    let name = full(&world, "m.bin");
    let (status, shown) = run(&["upload", &name, "in"]);
    assert_eq!(status, Some(0), "{shown}");
    assert!(
        shown.trim_end().ends_with("uploaded         [########################] 100 %  4.0 MB of 4.0 MB"),
        "{shown:?}"
    );
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(1_000_000), None);
    let (status, shown) = run(&["load", &name, "out"]);
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("\r\u{1b}[Kloading  ") && shown.contains("[####") && shown.contains('.'), "{shown:?}");
    assert!(
        shown.trim_end().ends_with("loaded           [########################] 100 %  4.0 MB of 4.0 MB"),
        "{shown:?}"
    );
    assert!(fs::read(dir.path().join("out")).unwrap() == bytes);

    let (status, shown) = run(&["load", &name]);
    assert_eq!(
        (status, shown.trim_end()),
        (Some(1), "loader: standard output is a terminal; name a file or redirect it")
    );
    let (status, shown) = run(&["upload", &name]);
    assert_eq!(status, Some(1));
    assert!(shown.contains("standard input is a terminal; name a file or pipe the model into it"), "{shown}");
}

/// The service is killed during a load: no file gets the name, and the next command fetches only the rest.
#[test]
fn a_load_that_broke_off_goes_on_where_it_stopped() {
    let (world, proxy) = World::behind_proxy();
    let bytes = pattern(8_000_000, 1);
    world.upload("m.bin", &bytes);
    world.forget("m.bin");
    proxy.fault("GET", "m.bin", Fault::Trickle(50_000), None);
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    let name = full(&world, "m.bin");
    let arguments = ["load", &name, out.to_str().unwrap(), "--continue"];
    let broken = thread::scope(|scope| {
        let load = scope.spawn(|| world.service.run(&arguments));
        eventually(Duration::from_secs(30), "bytes to arrive", || {
            fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > 0)
        });
        // A second load into the same file must not mix its bytes with the first one's.
        let (status, _, err) = said(&world.service.run(&["load", &name, out.to_str().unwrap()]));
        assert_eq!(status, 1, "{err}");
        assert!(err.contains("another process is writing"), "{err}");
        world.service.kill();
        load.join().unwrap()
    });
    let (status, _, err) = said(&broken);
    assert_eq!(status, 1);
    assert!(err.contains("broke") && err.ends_with("; to resume, repeat the command with --continue\n"), "{err}");
    assert_eq!(files_in(dir.path()), ["out.partial", "out.partial.tag"]);
    let arrived = fs::metadata(&partial).unwrap().len();
    assert!(arrived > 0 && arrived < 8_000_000, "{arrived}");

    proxy.clear_faults();
    world.service.restart();
    // A refusal deletes nothing that has arrived.
    let (status, _, err) = said(&world.service.run(&arguments));
    assert!(status == 1 && err.contains("log in first"), "{err}");
    world.login();
    assert_eq!(said(&world.service.run(&arguments)), ok());
    assert!(fs::read(&out).unwrap() == bytes);
    assert_eq!(files_in(dir.path()), ["out"]);
    let rest = format!("status=206 bytes={} ", 8_000_000 - arrived);
    assert!(world.service.log_text().contains(&rest), "{rest} in {}", world.service.log_text());

    // All bytes had arrived, and only the name was missing.
    fs::rename(&out, &partial).unwrap();
    let tag = world.service.try_load(&world.folder, "m.bin").unwrap().header("etag").unwrap().to_owned();
    fs::write(dir.path().join("out.partial.tag"), format!("{tag} {name}\n")).unwrap();
    assert_eq!(said(&world.service.run(&arguments)), ok());
    assert!(world.service.log_text().contains("status=416"));
    assert!(fs::read(&out).unwrap() == bytes);

    // Another version, another model, or too many bytes: everything is fetched again.
    world.upload("m.bin", &bytes[1..]);
    world.upload("n.bin", &bytes[2..]);
    let other = full(&world, "n.bin");
    for (kept, tag_of, wanted, expected) in
        [(500, &name, &name, &bytes[1..]), (500, &name, &other, &bytes[2..]), (9_000_000, &name, &name, &bytes[1..])]
    {
        let now = world.service.try_load(&world.folder, "m.bin").unwrap().header("etag").unwrap().to_owned();
        fs::write(&partial, vec![0; kept]).unwrap();
        fs::write(dir.path().join("out.partial.tag"), format!("{} {tag_of}\n", if kept > 500 { &now } else { &tag }))
            .unwrap();
        let arguments = ["load", "--continue", wanted, out.to_str().unwrap()];
        assert_eq!(said(&world.service.run(&arguments)), ok());
        assert!(fs::read(&out).unwrap() == expected, "{kept} {wanted}");
        assert_eq!(files_in(dir.path()), ["out"]);
    }
}

#[test]
fn an_upload_that_is_refused_ends_at_once_with_the_reason() {
    let world = World::with(|builder| builder.env("MAX_UPLOAD_BYTES", "1M"));
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("big");
    fs::File::create(&big).unwrap().set_len(40 << 30).unwrap();
    let name = full(&world, "m.bin");
    let (status, _, err) = said(&world.service.run(&["upload", &name, big.to_str().unwrap()]));
    assert_eq!((status, err.as_str()), (1, "loader: the file has more than MAX_UPLOAD_BYTES (1048576) bytes\n"));
    // That a pipe has too many bytes is found only while they are sent.
    let mut endless = world.service.command();
    endless.args(["upload", &name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut endless = endless.spawn().unwrap();
    let mut stdin = endless.stdin.take().unwrap();
    while stdin.write_all(&[7; 65_536]).is_ok() {}
    let (status, _, err) = said(&endless.wait_with_output().unwrap());
    assert_eq!((status, err.as_str()), (1, "loader: the file has more than MAX_UPLOAD_BYTES (1048576) bytes\n"));
    let nobody = Service::builder().start();
    let (status, _, err) = said(&nobody.run_with(&["upload", "models/m.bin"], b"bytes"));
    assert!(status == 1 && err.contains("log in first"), "{err}");
    assert!(world.keys().is_empty());
}

#[test]
fn models_are_listed_and_removed() {
    let world = World::with(|builder| builder.env("KEEP", "models/kept.bin"));
    world.upload("a b.bin", &pattern(70_000, 1));
    world.upload("m.bin", &pattern(1_500_000, 1));
    for name in ["a b.bin", "m.bin"] {
        world.loads(name, &world.service.load(&world.folder, name).body);
    }
    let (status, out, err) = said(&world.service.run(&["models"]));
    assert_eq!((status, err.as_str()), (0, ""));
    let (first, second) = (full(&world, "a b.bin"), full(&world, "m.bin"));
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with(&format!("{first}      70 kB  used 20")), "{out}");
    assert!(lines[1].starts_with(&format!("{second}       1.5 MB  used 20")), "{out}");
    let (_, json, _) = said(&world.service.run(&["models", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["models"][1]["name"], "m.bin");

    assert_eq!(said(&world.service.run(&["remove", &first])), ok());
    assert!(!world.service.cache_file(&world.folder, "a b.bin").exists());
    let (_, out, _) = said(&world.service.run(&["models"]));
    assert!(!out.contains(&first) && out.contains(&second), "{out}");
    let (status, _, err) = said(&world.service.run(&["remove", &first]));
    assert!(status == 1 && err.contains("not in the cache"), "{err}");
    let (status, _, err) = said(&world.service.run(&["remove", "models/kept.bin"]));
    assert!(status == 1 && err.contains("KEEP"), "{err}");
}

#[test]
fn the_service_is_found_by_its_url() {
    let (tcp, unix) = (Service::builder().start(), Service::builder().unix().start());
    let url = format!("http://{}/", tcp.address());
    for url in [&url, unix.address()] {
        let status = Service::builder().env("LOADER_URL", url).run(&["status"], b"");
        let (status, out, err) = said(&status);
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(out.contains("healthy"), "{out}");
    }
    tcp.kill();
    let (status, _, err) = said(&Service::builder().env("LOADER_URL", &url).run(&["status"], b""));
    assert!(status == 1 && err.contains("at the address that LOADER_URL names?"), "{err}");
    // Variables that only the commands need do not stop the service.
    assert!(Service::builder().env("LOADER_URL", "http://no.such.host:80").start().is_running());
}

/// Arguments, exit status, and a part of the message.
type Mistake<'a> = (&'a [&'a str], i32, &'a str);

#[test]
fn every_mistake_with_models_is_told_in_one_line_that_helps() {
    let world = World::new();
    let none = full(&world, "none");
    let cases: &[Mistake] = &[
        (&["load"], 2, "name one model and at most one file; loader load FOLDER/NAME"),
        (&["load", "m.bin"], 2, "m.bin is not of the form FOLDER/NAME; loader load"),
        (&["load", "models/a/b"], 2, "filename must be one path segment"),
        (&["load", "No/m"], 2, "folder must be a bucket name"),
        (&["load", "models/m", "--fast"], 2, "unknown option --fast"),
        (&["load", "models/m", "--continue"], 2, "--continue needs a file, OUT"),
        (&["load", "models/m", "a", "b"], 2, "at most one file"),
        (&["load", "models/m", "/"], 1, "the output / is a directory"),
        (&["load", &none], 1, "No such file"),
        (&["load", &none, "/no/such/directory/out"], 1, "No such file"),
        (&["upload", "models/m", "none"], 1, "the input none cannot be read: No such file"),
        (&["upload", "models/m", "/"], 1, "the input / cannot be read: Is a directory"),
        (&["upload", "models/m"], 1, "standard input is empty"),
        (&["upload", "models/m", "--fast"], 2, "unknown option --fast"),
        (&["models", "all"], 2, "unknown arguments: all; loader models [--json]"),
        (&["remove"], 2, "name one model; loader remove FOLDER/NAME"),
        (&["remove", &none], 1, "not in the cache"),
        (&["completions"], 2, "name the shell, bash; loader completions bash"),
        (&["exec"], 125, "-- and COMMAND are missing; loader exec --model"),
        (&["exec", "--model", "models/m=M", "--"], 125, "COMMAND is missing after --"),
    ];
    for (arguments, expected, words) in cases {
        let (status, out, err) = said(&world.service.run(arguments));
        assert_eq!((status, out.as_str()), (*expected, ""), "{arguments:?}: {err}");
        assert!(err.starts_with("loader: ") && err.lines().count() == 1, "{arguments:?}: {err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
}

#[test]
fn bash_completes_commands_options_and_models() {
    let world = World::new();
    world.upload("a b.bin", b"a model");
    world.loads("a b.bin", b"a model");
    let program = world.service.command().get_program().to_owned();
    let complete = |words: &[&str]| {
        let script = "loader() { \"$LOADER\" \"$@\"; }; source <(loader completions bash)
            COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _loader loader \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"
            printf '%s\\n' \"${COMPREPLY[@]}\"";
        let output = Command::new("bash")
            .args(["-c", script, "bash"])
            .args(words)
            .env("LOADER", &program)
            .env("BIND_ADDR", world.service.address())
            .output();
        let (status, out, err) = said(&output.unwrap());
        assert_eq!((status, err.as_str()), (0, ""), "{words:?}");
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["loader", "lo"]), ["login", "load"]);
    assert_eq!(complete(&["loader", "load", "x", "--c"]), ["--continue"]);
    assert_eq!(complete(&["loader", "exec", "--m"]), ["--model"]);
    assert_eq!(complete(&["loader", "completions", ""]), ["bash", "--help"]);
    let model = full(&world, "a b.bin");
    assert_eq!(complete(&["loader", "load", &world.folder]), [model.as_str()]);
    assert_eq!(complete(&["loader", "exec", "--model", &world.folder]), [model.as_str()]);
}

#[test]
fn the_manual_page_can_be_read() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/.dist/loader.1");
    let man = match Command::new("man").args(["--warnings", "-E", "UTF-8", "-l", page]).env("MANPAGER", "cat").output()
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return crate::world::skip("the_manual_page_can_be_read", "man is not installed");
        }
        man => man.unwrap(),
    };
    let (status, out, err) = said(&man);
    assert_eq!((status, err.as_str()), (0, ""));
    for words in ["loader exec --model FOLDER/NAME=VAR ... -- COMMAND ...", "EXIT STATUS", "LOADER_URL", "--continue"] {
        assert!(out.contains(words), "{words}: {out}");
    }
}
