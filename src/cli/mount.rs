//! `loader mount`: models as files.

use std::fs;
use std::time::Duration;

use log::LevelFilter;

use super::command::{Command, Failure};
use super::help;
use crate::configuration::Configuration;
use crate::logging;
use crate::mount::{self, Options};

pub(super) static COMMAND: Command = Command {
    name: "mount",
    arguments: "DIR [--allow-other] [--mode MODE] [--group GROUP] [--timeout SECONDS] [--until-closed]",
    summary: "mount the models as files: DIR/FOLDER/NAME, read-only, with FUSE",
    help: &[
        "\
Programs open the models of the running service by path. A listing shows the cached models; any other is loaded when it is
opened. An open file stays the version as which it was opened. SIGTERM and SIGINT unmount. It takes root, or fusermount3.

  --allow-other          let users other than this one read
  --mode MODE            the mode of files, in octal (0440)
  --group GROUP          the group of files, by name or number (this user's)
  --timeout SECONDS      how long a read may take, 1 to 3600 (30)
  --until-closed         unmount a few seconds after the last open file has been closed
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let mut options = Options {
        directory: "".into(),
        allow_other: false,
        mode: 0o440,
        group: None,
        timeout: Duration::from_secs(30),
        until_closed: false,
    };
    let mut words = words.iter().copied();
    let mut directories = 0;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| Failure::arguments(format!("{word} needs a value")));
        match word {
            "--until-closed" => options.until_closed = true,
            "--allow-other" => options.allow_other = true,
            "--mode" => options.mode = mode(value()?)?,
            "--group" => options.group = Some(group(value()?)?),
            "--timeout" => options.timeout = timeout(value()?)?,
            word if word.starts_with('-') => return Err(Failure::arguments(format!("unknown option: {word}"))),
            directory => {
                directories += 1;
                options.directory = directory.into();
            }
        }
    }
    if directories != 1 {
        return Err(Failure::arguments("one directory is needed"));
    }
    let configuration = Configuration::for_clients().map_err(Failure::setup)?;
    logging::start(LevelFilter::Info, None);
    mount::run(&configuration, &options).map_err(Failure::runtime)
}

fn mode(text: &str) -> Result<u16, Failure> {
    let mode = u16::from_str_radix(text, 8).ok().filter(|mode| mode & !0o444 == 0);
    mode.ok_or_else(|| Failure::arguments("--mode needs an octal mode of read permissions, such as 0444"))
}

fn timeout(text: &str) -> Result<Duration, Failure> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| Failure::arguments("--timeout needs 1 to 3600 seconds"))
}

/// A group's number, from `/etc/group`.
fn group(text: &str) -> Result<u32, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok())?
    });
    number.ok_or_else(|| Failure::setup(format!("--group: there is no group {text} on this machine")))
}
