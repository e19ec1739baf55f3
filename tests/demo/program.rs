//! The `loader` program itself. Cargo builds an example without the package's programs, so the demo has that done.
//!
//! It names the example too: the loader then shares the dependencies that were just built for the demo. Alone it would be
//! built on other features of them, which takes a minute more on a fresh clone.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Cargo's arguments for a loader of the same profile as this program's.
pub fn cargo_arguments() -> Result<Vec<String>, String> {
    let mut arguments = ["build", "--bin", "loader", "--example", "demo"].map(str::to_owned).to_vec();
    match profile_dir()?.file_name().and_then(|name| name.to_str()) {
        Some("debug") => {}
        Some("release") => arguments.push("--release".to_owned()),
        Some(profile) => arguments.extend(["--profile".to_owned(), profile.to_owned()]),
        None => return Err("this program is not where Cargo builds it".to_owned()),
    }
    Ok(arguments)
}

/// Builds the loader with Cargo, which takes no time if it is up to date.
pub fn build(arguments: &[String]) -> Result<(), String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(arguments).arg("--quiet").stdin(Stdio::null());
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    // `cargo run` sets these for this program; passed on, they would make build scripts run again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    let status = command.status().map_err(|error| format!("{} cannot be run: {error}", cargo.display()))?;
    if !status.success() {
        return Err(format!("the loader was not built (cargo: {status})"));
    }
    let loader = profile_dir()?.join("loader");
    if !loader.is_file() {
        // It was built elsewhere: only the outer Cargo has its own options.
        let hint = "set CARGO_BUILD_TARGET or CARGO_TARGET_DIR instead of --target or --target-dir";
        return Err(format!("there is no loader program at {}; {hint}", loader.display()));
    }
    Ok(())
}

/// Where Cargo puts programs; examples are one level below.
fn profile_dir() -> Result<PathBuf, String> {
    let program = env::current_exe().map_err(|error| format!("this program's path is unknown: {error}"))?;
    let dir = program.parent().and_then(Path::parent);
    dir.map(Path::to_owned).ok_or_else(|| "this program is not where Cargo builds it".to_owned())
}
