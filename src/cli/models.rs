//! `loader models`: what the running service has in its cache.

use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::command::{Command, Failure, has_flag, print, print_answer};
use super::help;
use super::progress::size;
use super::running_service::{RunningService, STATUS_TIMEOUT, text};

pub(super) static COMMAND: Command = Command {
    name: "models",
    arguments: "[--json]",
    summary: "list the models in the cache of the running service",
    help: &[
        "\
Prints a line for each model that is complete in the cache: its size, when it was used last, and whether KEEP names it.

  --json                 print the service's answer to GET /models as it is
",
        help::SERVICE,
    ],
    run,
};

fn run(words: &[&str]) -> Result<(), Failure> {
    let is_raw = has_flag(words, "--json")?;
    let (body, answer) = RunningService::from_environment()?.ask("/models", None, STATUS_TIMEOUT)?;
    if is_raw {
        return print_answer(&body);
    }
    print(&table(answer["models"].as_array().map_or(&[], Vec::as_slice)))
}

fn table(models: &[Value]) -> String {
    let name = |model: &Value| format!("{}/{}", text(&model["folder"]), text(&model["name"]));
    let width = models.iter().map(|model| name(model).chars().count()).max().unwrap_or(0);
    let row = |model: &Value| {
        let bytes = model["plainBytes"].as_u64().or(model["bytes"].as_u64()).unwrap_or(0);
        let kept = if model["kept"] == true { "  kept" } else { "" };
        format!("{:width$}  {:>9}  used {}{kept}\n", name(model), size(bytes), minute(&model["lastUsed"]))
    };
    models.iter().map(row).collect()
}

fn minute(seconds: &Value) -> String {
    let time = seconds.as_i64().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = time.and_then(|time| time.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC")).ok());
    text.unwrap_or_else(|| "at an unknown time".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn sizes_are_in_one_column() {
        let models = json!([
            {"folder": "models", "name": "m.bin", "bytes": 1, "plainBytes": 1_250_000, "lastUsed": 0, "kept": true},
            {"folder": "models", "name": "модель.onnx", "bytes": 12, "plainBytes": null, "lastUsed": 1_700_000_000},
        ]);
        assert_eq!(
            table(models.as_array().unwrap()),
            "models/m.bin           1.2 MB  used 1970-01-01 00:00 UTC  kept\n\
             models/модель.onnx       12 B  used 2023-11-14 22:13 UTC\n"
        );
        assert_eq!(table(&[]), "");
    }
}
