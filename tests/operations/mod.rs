//! Operating it: the command line, systemd and container images, logs and metrics, full disks, power cuts and long
//! runs.

mod alerts;
mod boards;
mod client_commands;
mod command_line;
mod exec_command;
mod full_disk;
mod hardware;
mod image;
mod logs;
mod metrics;
mod model_commands;
mod mount;
mod package;
mod power_cuts;
mod resets;
mod secrets;
mod soak;
mod systemd;
mod unattended;
mod walk;
