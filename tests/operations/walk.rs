//! A technician with an empty box who knows only `--help`: every command, at a terminal and in a pipe.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::world::docker::{Engine, engine_or_skip, saved_images};
use crate::world::process::run_to_end;
use crate::world::pty::Terminal;
use crate::world::resource_api::{EMAIL, PASSWORD, ResourceApi};
use crate::world::s3::S3;
use crate::world::service::Service;
use crate::world::{pattern, sha256_hex};

const AT_MOST: Duration = Duration::from_secs(60);

const FRAGMENT: &[u8] = b"the key fragment of the walk";

/// How a bar is redrawn.
const REPAINT: &str = "\r\u{1b}[K";

const FULL_BAR: &str = "[########################] 100 %";

struct Walk {
    service: Service,
    at_terminal: bool,
    /// The commands that have succeeded so far.
    walked: BTreeSet<String>,
}

impl Walk {
    /// Runs a command that must end with this status, and returns its output: everything at a terminal, else standard
    /// output and standard error. `password` is typed or piped, as the help says.
    fn run(&mut self, words: &[&str], stdin: &[u8], expected: i32) -> (String, String) {
        let help = self.help(words[0]);
        let options = words.iter().take_while(|word| **word != "--").filter(|word| word.starts_with("--"));
        options.for_each(|option| assert!(help.contains(option) || *option == "--fast", "{option}: {help}"));
        let mut command = self.service.command();
        command.current_dir(self.service.dir());
        let (status, out, err) = if self.at_terminal {
            command.args(words);
            let mut terminal = Terminal::run(command);
            if !stdin.is_empty() {
                terminal.expect("Password: ");
                terminal.send(&String::from_utf8_lossy(stdin));
            }
            let status = terminal.wait();
            (status, terminal.shown().replace("\r\n", "\n"), String::new())
        } else {
            let output = run_to_end(command, words, stdin, AT_MOST);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status, text(&output.stdout), text(&output.stderr))
        };
        assert_eq!(status.code(), Some(expected), "{words:?}: {out}{err}");
        // No colours anywhere, and the bar's own sequence only at a terminal.
        let plain = if self.at_terminal { out.replace(REPAINT, "") } else { format!("{out}{err}") };
        assert!(!plain.contains(['\u{1b}', '\r']), "{words:?}: {plain:?}");
        assert!(!plain.contains(PASSWORD), "{words:?}: {plain}");
        if expected == 0 {
            self.walked.insert(words[0].to_owned());
        }
        (out, err)
    }

    /// The same for a command that succeeds. It writes nothing to standard error except its progress.
    fn done(&mut self, words: &[&str]) -> String {
        let (out, err) = self.run(words, b"", 0);
        assert_eq!(err, "", "{words:?}");
        out
    }

    /// Why a command failed: one line, and not on standard output.
    fn failed(&mut self, words: &[&str], status: i32) -> String {
        let (out, err) = self.run(words, b"", status);
        let reason = if self.at_terminal {
            out
        } else {
            assert_eq!(out, "", "{words:?}");
            err
        };
        assert!(reason.starts_with("loader: ") && reason.lines().count() == 1, "{words:?}: {reason}");
        reason
    }

    /// A command that asks for the password at a terminal, and reads it from a pipe elsewhere.
    fn with_password(&mut self, command: &str) -> String {
        let words = [command, EMAIL, "--password-stdin"];
        let words = if self.at_terminal { &words[..2] } else { &words };
        self.run(words, format!("{PASSWORD}\n").as_bytes(), 0).0
    }

    /// A transfer ends with a full bar at a terminal; elsewhere it prints a line every 10 s.
    fn transfers(&mut self, words: &[&str]) {
        let started = Instant::now();
        let (said, err) = self.run(words, b"", 0);
        if self.at_terminal {
            assert!(said.contains(REPAINT) && said.contains(FULL_BAR), "{words:?}: {said:?}");
        } else {
            assert_eq!(said, "", "{words:?}");
            assert!(err.lines().count() as u64 <= started.elapsed().as_secs() / 10, "{words:?}: {err}");
        }
    }

    /// A command's output for programs.
    fn json(&mut self, command: &str) -> serde_json::Value {
        let said = self.done(&[command, "--json"]);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    fn help(&self, command: &str) -> String {
        let output = run_to_end(self.service.command(), &[command, "--help"], b"", AT_MOST);
        assert!(output.status.success(), "{command}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn every_command_does_at_a_terminal_and_in_a_pipe_what_its_help_says() {
    let Some(engine) = engine_or_skip("the walk") else { return };
    for at_terminal in [true, false] {
        walk(engine, at_terminal);
    }
}

fn walk(engine: &Engine, at_terminal: bool) {
    let (api, s3) = (ResourceApi::start(), S3::start());
    api.put_file("", "cdn.yaml", s3.cdn_yaml());
    api.set_key_fragment(FRAGMENT);
    let folder = s3.new_bucket("models");
    let mut builder = Service::builder().api(&api);
    if let Some(host) = &engine.host {
        builder = builder.env("DOCKER_HOST", host);
    }
    let service = builder.start();
    let mut walk = Walk { service, at_terminal, walked: BTreeSet::new() };
    let bytes = pattern(4_000_000, 1);
    fs::write(walk.service.dir().join("in"), &bytes).unwrap();
    let model = format!("{folder}/m.bin");

    // What works before anybody is logged in.
    assert!(walk.done(&["fingerprint"]).starts_with("CPU: "));
    assert_eq!(walk.done(&["keygen", "keys"]), "keys/signing-key.pem\nkeys/trusted-keys.pem\n");
    for (variable, file) in [("SIGNING_KEY_PATH", "signing-key.pem"), ("TRUSTED_KEYS_PATH", "trusted-keys.pem")] {
        walk.service.set_env(variable, walk.service.dir().join("keys").join(file));
    }
    walk.service.restart();
    assert!(walk.done(&["completions", "bash"]).contains("-F _loader loader"));
    assert_eq!(walk.done(&["healthcheck"]), "");
    assert!(walk.failed(&["healthcheck", "--ready"], 1).contains("nobody is logged in"));
    assert!(walk.done(&["status"]).contains("logged in     no; run loader login"));
    assert_eq!(walk.json("status")["authenticated"], false);
    assert!(walk.failed(&["load", &model, "out"], 1).contains("log in first"));
    assert!(walk.failed(&["upload", &model, "in"], 1).contains("log in first"));

    assert!(walk.with_password("login").ends_with(&format!("logged in as {EMAIL}\n")));
    assert_eq!(walk.done(&["healthcheck", "--ready"]), "");
    assert_eq!(walk.json("status")["user"]["email"], EMAIL);

    // A model, from upload to removal.
    assert!(walk.failed(&["remove", &model], 1).contains("not in the cache"));
    walk.transfers(&["upload", &model, "in"]);
    walk.transfers(&["load", &model, "out"]);
    assert!(fs::read(walk.service.dir().join("out")).unwrap() == bytes);
    let list = walk.done(&["models"]);
    assert!(list.starts_with(&model) && list.contains("  4.0 MB  used 20") && list.lines().count() == 1, "{list}");
    assert_eq!(walk.json("models")["models"][0]["plainBytes"], bytes.len());
    let (out, err) = walk.run(&["verify"], b"", 0);
    assert!(out.contains("models verified: 1 (") && out.ends_with(", damaged chunks repaired: 0\n"), "{out}");
    assert_eq!((out.contains(FULL_BAR), err.as_str()), (at_terminal, ""));
    let variable = format!("{model}=MODEL");
    let program = ["exec", "--model", &variable, "--", "sh", "-c", "sha256sum <\"$MODEL\""];
    let said = walk.done(&program);
    let hash = format!("{}  -\n", sha256_hex(&bytes));
    assert!(if at_terminal { said.contains(FULL_BAR) && said.ends_with(&hash) } else { said == hash }, "{said:?}");
    walk.run(&["exec", "--model", &variable, "--", "sh", "-c", "exit 7"], b"", 7);
    assert_eq!(walk.done(&["remove", &model]), "");
    assert_eq!(walk.json("models")["models"].as_array().unwrap().len(), 0);

    // The images, from the archive to the engine.
    let tag = format!("loader-walk-{}:{at_terminal}", std::process::id());
    fs::write(walk.service.dir().join("images.tar"), saved_images(&[&tag], 3_000_000, false)).unwrap();
    fs::write(walk.service.dir().join("fragment"), FRAGMENT).unwrap();
    let archive = walk.service.images_path();
    walk.transfers(&["pack", "--key-file", "fragment", "images.tar", archive.to_str().unwrap()]);
    let said = walk.with_password("unlock");
    assert!(said.trim_end().rsplit(['\r', '\n']).next().unwrap().contains("ready"), "{said:?}");
    assert_eq!(said.contains(REPAINT), at_terminal, "{said:?}");
    let there = engine.has(&tag);
    engine.remove(&tag);
    assert!(there, "{said}");
    assert!(walk.done(&["status"]).lines().any(|line| line == "images        ready"));

    // No command is left out, and each ends as its help says when it is used wrongly or finds no service.
    let general = String::from_utf8(run_to_end(walk.service.command(), &["--help"], b"", AT_MOST).stdout).unwrap();
    let usage = general.split("\n\n").find(|part| part.starts_with("Usage:")).unwrap();
    let commands = usage.lines().filter_map(|line| line.strip_prefix("  loader ")?.split([' ', '[']).next());
    let commands: BTreeSet<String> = commands
        .filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase()) && *word != "mount")
        .map(str::to_owned)
        .collect();
    assert_eq!(walk.walked, commands);
    walk.service.kill();
    for command in &commands {
        let (failed, wrong) = if command == "exec" {
            assert!(walk.help(command).contains("125 if a model could not be loaded or the usage was wrong"));
            (125, 125)
        } else {
            assert!(walk.help(command).contains("\nExit status: 0 done, 1 failed, 2 wrong usage.\n"), "{command}");
            (1, 2)
        };
        walk.failed(&[command, "--fast"], wrong);
        let words: &[&str] = match command.as_str() {
            // These ask no service, or ask for a password first.
            "fingerprint" | "keygen" | "completions" | "pack" | "login" | "unlock" => continue,
            "remove" => &[&model],
            "load" | "upload" => &[&model, "in"],
            "exec" => &["--model", &variable, "--", "true"],
            _ => &[],
        };
        let reason = walk.failed(&[&[command.as_str()], words].concat(), failed);
        assert!(reason.contains(walk.service.address()), "{reason}");
    }
}
