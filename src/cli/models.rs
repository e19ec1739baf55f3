//! `loader models`: what the running service has in its cache.

use serde_json::Value;

use super::progress::size;
use super::running_service::{RunningService, STATUS_TIMEOUT, text};
use super::{Command, Failure, help, no_arguments, print};

pub(super) static COMMAND: Command = Command {
    name: "models",
    arguments: "[--json]",
    summary: "list the models in the cache of the running service",
    help: &[
        "\
Prints a line for each model that is complete in the cache, with the size of its encrypted part.

  --json                 print the service's answer to GET /models as it is
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let is_raw = *words == ["--json"];
    if !is_raw {
        no_arguments(words)?;
    }
    let (body, answer) = RunningService::from_environment()?.ask("/models", None, STATUS_TIMEOUT)?;
    if is_raw {
        return print(&format!("{}\n", String::from_utf8_lossy(&body).trim_end()));
    }
    print(&table(answer["models"].as_array().map_or(&[], Vec::as_slice)))
}

fn table(models: &[Value]) -> String {
    let name = |model: &Value| format!("{}/{}", text(&model["folder"]), text(&model["name"]));
    let width = models.iter().map(|model| name(model).chars().count()).max().unwrap_or(0);
    let row = |model| format!("{:width$}  {:>9}\n", name(model), size(model["bytes"].as_u64().unwrap_or(0)));
    models.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn sizes_are_in_one_column() {
        let models = json!([
            {"folder": "models", "name": "m.bin", "bytes": 1_250_000},
            {"folder": "models", "name": "модель.onnx", "bytes": 12, "more": true},
        ]);
        assert_eq!(table(models.as_array().unwrap()), "models/m.bin           1.2 MB\nmodels/модель.onnx       12 B\n");
        assert_eq!(table(&[]), "");
    }
}
