//! The shipped units and the static program in a systemd that really boots: Debian in a container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::world::machine::{HANG, Machine, Network, machine_or_skip};
use crate::world::process::StoppedThread;
use crate::world::service::Service;
use crate::world::{client, eventually};

/// The users that systemd makes for `DynamicUser=`.
const DYNAMIC_USERS: std::ops::RangeInclusive<u32> = 61184..=65519;

#[test]
fn the_units_as_shipped_start_wait_restart_and_stop() {
    // The unit's port may be taken on this machine.
    let Some(mut machine) = machine_or_skip("the systemd units", Network::Own, &[]) else { return };
    machine.install();
    machine.boot();
    // The group that docker's package creates.
    machine.run("groupadd --system docker");
    it_starts_while_docker_hangs_at_its_start(&machine);
    it_starts_with_a_user_of_its_own_and_says_how_it_is(&machine);
    clients_of_the_socket_wait_while_it_restarts(&machine);
    thread::scope(|scope| {
        // Both take half a minute.
        scope.spawn(a_hung_gate_ends_the_process);
        a_hung_accept_loop_ends_the_process_and_systemd_starts_it_again(&machine);
    });
    a_stopped_process_is_restarted_by_the_watchdog(&machine);
    it_stops_cleanly(&machine);
}

fn it_starts_while_docker_hangs_at_its_start(machine: &Machine) {
    // Like Debian's unit, it may start for ever.
    machine.run(
        "printf '[Service]\\nType=notify\\nTimeoutStartSec=0\\nExecStart=sleep infinity\\n' >/run/systemd/system/docker.service
        systemctl daemon-reload && systemctl start --no-block docker.service
        timeout 60 systemctl start loader.service",
    );
    assert_eq!(machine.run("systemctl show --property=ActiveState --value docker.service").trim(), "activating");
    machine.run("systemctl stop loader.service docker.service");
    machine.run("rm /run/systemd/system/docker.service && systemctl daemon-reload");
}

fn it_starts_with_a_user_of_its_own_and_says_how_it_is(machine: &Machine) {
    // `start` returns when the service has said that it is ready, so it answers from the first moment.
    machine.run("systemctl start loader.service");
    machine.run("loader healthcheck");
    assert_eq!(machine.property("Type"), "notify");
    assert_eq!(machine.property("SubState"), "running");
    let pid = machine.main_pid();
    let status = machine.run(&format!("cat /proc/{pid}/status"));
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let user: u32 = user.split_whitespace().next().unwrap().parse().unwrap();
    assert!(DYNAMIC_USERS.contains(&user), "its user is {user}");
    let limits = machine.run(&format!("cat /proc/{pid}/limits"));
    let limit = |name: &str| -> Vec<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(limit("Max core file size")[..2], ["0", "0"]);
    assert_eq!(limit("Max open files")[..2], ["4096", "4096"]);
    let journal = machine.run("journalctl --no-pager --unit=loader.service");
    assert!(!journal.contains("leaves room for"), "the unit's limits do not fit the program's: {journal}");

    let line = "Status: \"not logged in; images: idle; downloads: 0\"";
    eventually(HANG, "systemctl status shows the status line", || {
        machine.run("systemctl status --no-pager loader.service").contains(line)
    });
}

fn clients_of_the_socket_wait_while_it_restarts(machine: &Machine) {
    machine.run("groupadd --system loader");
    // As `.dist/README.md` says: systemd does not open the socket while the service runs without it.
    machine.run("systemctl stop loader && systemctl enable --now loader.socket && systemctl start loader");
    let path = machine.path("/run/loader.sock");
    let socket = fs::metadata(&path).unwrap();
    let group = machine.run("getent group loader");
    assert_eq!(socket.mode() & 0o777, 0o660);
    assert_eq!(group.split(':').nth(2), Some(socket.gid().to_string().as_str()));
    machine.run("BIND_ADDR=unix:/run/loader.sock loader healthcheck");
    assert!(!machine.try_run("loader healthcheck").0, "it listens on BIND_ADDR although it has a socket from systemd");
    assert!(
        DYNAMIC_USERS.contains(&fs::metadata(machine.path(&format!("/proc/{}", machine.main_pid()))).unwrap().uid())
    );

    let address = format!("unix:{}", path.display());
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client::call(&address, HANG, "GET", "/health", &[], b"")?;
                        if reply.status != 200 {
                            return Err(format!("{} {}", reply.status, reply.text()));
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                })
            })
            .collect();
        let served = |more: u64| {
            let before = answered.load(Ordering::Relaxed);
            // A client that failed makes no more requests, so one may be missing from the number.
            eventually(HANG, "clients are served", || {
                answered.load(Ordering::Relaxed) >= before + more || clients.iter().any(|client| client.is_finished())
            });
        };
        served(20);
        for _ in 0..5 {
            let before = machine.main_pid();
            machine.run("systemctl restart loader.service");
            assert_ne!(machine.main_pid(), before);
            served(20);
        }
        // Nobody serves, and the next connection starts the service.
        machine.run("systemctl stop loader.service");
        served(20);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect::<Vec<String>>()
    });
    assert!(failures.is_empty(), "of {answered:?} requests and more these failed: {failures:?}");
}

/// Only this thread is stopped: to everybody else the process looks alive.
fn a_hung_accept_loop_ends_the_process_and_systemd_starts_it_again(machine: &Machine) {
    let (pid, before) = (machine.main_pid(), machine.property("NRestarts"));
    assert_eq!(before, "0");
    let accept_loop = StoppedThread::of(machine.main_pid_outside(), None);
    eventually(HANG, "the process ends", || accept_loop.has_ended());
    eventually(HANG, "systemd starts it again", || {
        machine.property("NRestarts") == "1" && machine.property("SubState") == "running"
    });
    assert_ne!(machine.main_pid(), pid);
    machine.run("BIND_ADDR=unix:/run/loader.sock loader healthcheck");
    let journal = machine.run("journalctl --no-pager --unit=loader.service");
    assert!(journal.contains("the accept loop has not moved for 30 s; the process aborts"), "{journal}");
    assert!(journal.contains("status=6/ABRT") && !journal.contains("Watchdog timeout"), "{journal}");
}

fn a_hung_gate_ends_the_process() {
    let service = Service::builder().start();
    let gate = StoppedThread::of(service.pid(), Some("gate"));
    eventually(HANG, "the process ends", || gate.has_ended());
    assert_eq!(service.wait(HANG).signal(), Some(libc::SIGABRT));
    let log = service.log_text();
    assert!(log.contains("the gate thread has not moved for 30 s; the process aborts"), "{log}");
}

fn a_stopped_process_is_restarted_by_the_watchdog(machine: &Machine) {
    assert_eq!(machine.property("WatchdogUSec"), "1min");
    machine.run(
        "mkdir -p /run/systemd/system/loader.service.d
        printf '[Service]\\nWatchdogSec=1s\\n' >/run/systemd/system/loader.service.d/test.conf
        systemctl daemon-reload && systemctl restart loader.service",
    );
    // When nobody stops it, it lives longer than the limit.
    let pid = machine.main_pid();
    thread::sleep(Duration::from_secs(3));
    assert_eq!((machine.main_pid(), machine.property("NRestarts").as_str()), (pid, "0"));

    machine.run(&format!("kill -STOP {pid}"));
    eventually(HANG, "the watchdog restarts it", || {
        machine.property("NRestarts") == "1" && machine.property("SubState") == "running"
    });
    assert_ne!(machine.main_pid(), pid);
    let journal = machine.run("journalctl --no-pager --unit=loader.service");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    machine.run("BIND_ADDR=unix:/run/loader.sock loader healthcheck");
}

fn it_stops_cleanly(machine: &Machine) {
    let pid = machine.main_pid();
    machine.run("systemctl stop loader.service");
    for (name, value) in
        [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainCode", "1"), ("ExecMainStatus", "0")]
    {
        assert_eq!(machine.property(name), value, "{name}");
    }
    let journal = machine.run(&format!("journalctl --no-pager --unit=loader.service _PID={pid}"));
    assert!(journal.contains("message=\"stopped\""), "{journal}");
}
