//! `.dist/prometheus`: the alert rules and the dashboard, against what the running service exports.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{World, process, skip};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".dist/prometheus").join(name)
}

fn yaml(name: &str) -> Value {
    serde_yaml::from_str(&fs::read_to_string(file(name)).unwrap()).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(file("loader.dashboard.json")).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}"))
}

/// The name and expression of each alert.
fn alerts(rules: &Value) -> Vec<(&str, &str)> {
    let groups = list(&rules["groups"]);
    let rules = groups.iter().flat_map(|group| list(&group["rules"]));
    rules.map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect()
}

fn queries(dashboard: &Value) -> Vec<&str> {
    let panels = list(&dashboard["panels"]).iter();
    panels.flat_map(|panel| list(&panel["targets"])).map(|target| text(&target["expr"])).collect()
}

/// The metrics that an expression selects, and its label matchers with a value of ours, such as `state="error"`.
fn selected(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expression.split(|letter: char| !is_name(letter));
    let metrics = words.filter(|word| word.starts_with("loader_") || word.starts_with("process_"));
    let braces = expression.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let matchers = braces.flat_map(|inside| inside.split(", ")).filter(|matcher| {
        let (label, value) = matcher.split_once('=').unwrap();
        !["job", "instance"].contains(&label) && !value.starts_with('~')
    });
    (metrics.map(str::to_owned).collect(), matchers.map(str::to_owned).collect())
}

/// Runs `promtool` in the directory of the rules; none, and a line that the test is skipped, if it is not installed.
fn promtool(test: &str, arguments: &[&str]) -> Option<String> {
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        skip(test, "promtool is not installed; Debian's prometheus has it");
        return None;
    }
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(file(""));
    let output = process::run_to_end(command, &[], b"", Duration::from_secs(600));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    Some(said)
}

#[test]
fn every_metric_of_rules_and_dashboard_is_exported() {
    let world = World::new();
    world.upload("m.bin", b"model");
    world.loads("m.bin", b"model");
    let exported = world.service.get("/metrics").text();
    let (rules, dashboard) = (yaml("loader.rules.yml"), dashboard());
    let alerts = alerts(&rules);
    let expressions: Vec<&str> = alerts.iter().map(|(_, expr)| *expr).chain(queries(&dashboard)).collect();
    assert!(alerts.len() >= 8 && expressions.len() > alerts.len());
    for expression in expressions {
        let (metrics, matchers) = selected(expression);
        assert!(!metrics.is_empty() || expression.contains("up{"), "{expression} selects nothing");
        for metric in metrics {
            assert!(exported.contains(&format!("# TYPE {metric} ")), "{metric} of {expression} is not in\n{exported}");
        }
        for matcher in matchers {
            assert!(exported.contains(&matcher), "{matcher} of {expression} is not in\n{exported}");
        }
    }
}

#[test]
fn the_alerts_fire_when_they_should_and_not_before() {
    const TEST: &str = "promtool test rules";
    if promtool(TEST, &["check", "rules", "loader.rules.yml"]).is_some() {
        promtool(TEST, &["test", "rules", "loader.rules.test.yml"]);
    }
}

#[test]
fn each_alert_has_a_case_of_either_kind_and_an_explanation() {
    let (rules, tests) = (yaml("loader.rules.yml"), yaml("loader.rules.test.yml"));
    let cases: Vec<&Value> = list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"])).collect();
    let readme = fs::read_to_string(file("../README.md")).unwrap();
    for (alert, _) in alerts(&rules) {
        for fires in [true, false] {
            let has =
                cases.iter().any(|case| case["alertname"] == alert && list(&case["exp_alerts"]).is_empty() != fires);
            assert!(has, "{alert} has no case in which it fires: {fires}");
        }
        assert!(readme.contains(&format!("| `{alert}` |")), "{alert} is not in .dist/README.md");
    }
}

/// No Grafana is needed: Prometheus parses the dashboard's queries, and its panels must not overlap.
#[test]
fn the_dashboard_can_be_read() {
    let dashboard = dashboard();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(places.insert(place), "{place:?} is taken when {panel} comes");
        }
    }
    let rules: Vec<Value> = queries(&dashboard)
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let expr = query.replace("$__rate_interval", "5m").replace("$job", "loader").replace("$instance", ".*");
            assert!(!expr.contains('$'), "{expr}");
            json!({ "record": format!("query:{number}"), "expr": expr })
        })
        .collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    serde_json::to_writer(&mut file, &json!({ "groups": [{ "name": "dashboard", "rules": rules }] })).unwrap();
    promtool("promtool reads the dashboard's queries", &["check", "rules", file.path().to_str().unwrap()]);
}
