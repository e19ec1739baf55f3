//! `loader remove`: takes a model out of the cache of the running service.

use super::command::{Command, Failure};
use super::help;
use super::running_service::{RunningService, STATUS_TIMEOUT, segment};
use super::transfer::model;

pub(super) static COMMAND: Command = Command {
    name: "remove",
    arguments: "FOLDER/NAME",
    summary: "remove a model from the cache of the running service",
    help: &[
        "\
Removes a model from the cache of the running service, with what it keeps for offline loads. The CDN keeps the model: the
next load downloads it again. A model that is not cached, or that KEEP names, is an error.
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let [name] = *words else { return Err(Failure::arguments("name one model")) };
    let model = model(name)?;
    let service = RunningService::from_environment()?;
    let path = format!("/models/{}/{}", model.folder, segment(&model.file));
    Ok(service.delete(&path, STATUS_TIMEOUT)?)
}
