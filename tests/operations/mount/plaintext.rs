//! No plaintext is written to a disk, as `strace` sees service, mount and program.

use std::fs;
use std::process::{Command, Stdio};

use super::{HANG, drop_caches, text};
use crate::world::mount::{Mount, can_mount};
use crate::world::process::{run_to_end, signal};
use crate::world::{World, eventually, skip};

/// What the model consists of. `strace` shows the first bytes of each write.
const WORD: &str = "PLAINTEXT ";

const WRITES: &str = "trace=write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,vmsplice,tee,copy_file_range,mmap";

#[test]
fn service_mount_and_programs_write_plaintext_to_nothing_but_sockets_pipes_fuse_and_memory() {
    const TEST: &str = "what service, mount and programs write";
    if !can_mount(TEST) {
        return;
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(TEST, "strace is not installed");
    }
    let world = World::new();
    let plain = WORD.repeat(400_000).into_bytes();
    world.upload("model.bin", &plain);
    world.forget("model.bin");
    world.service.restart();
    world.login();
    let mount = Mount::of(&world.service, &[]);
    let traces = tempfile::tempdir().unwrap();
    let strace = |name: &str| {
        let mut command = Command::new("strace");
        // -yy: with the kind and path of each descriptor.
        command.args(["-f", "-yy", "-s", "64", "-e", WRITES, "-o"]).arg(traces.path().join(name));
        command
    };
    let traced = |name: &str, pid: u32| {
        let child = strace(name).args(["-p", &pid.to_string()]).stderr(Stdio::null()).spawn().unwrap();
        let attached = || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
            tasks.flatten().all(|task| !status(task).contains("TracerPid:\t0\n"))
        };
        eventually(HANG, "strace is attached", attached);
        child
    };
    let mut tracers = [traced("service", world.service.pid()), traced("mount", mount.pid())];

    let path = mount.path().join(&world.folder).join("model.bin");
    let script = "import mmap, sys\n\
                  with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:\n    \
                  sys.stdout.buffer.write(m)";
    let mut program = strace("program");
    program.args(["python3", "-c", script, text(&path)]);
    assert!(run_to_end(program, &[], b"", HANG).stdout == plain);
    drop_caches();
    // Once more without the mount, by `loader exec`.
    let exec = world.service.command();
    let mut program = strace("exec");
    program.arg(exec.get_program()).arg("exec").arg("--model").arg(format!("{}/model.bin=M", world.folder));
    program.args(["--", "sh", "-c", "cat $M"]).current_dir(exec.get_current_dir().unwrap());
    for (name, value) in exec.get_envs() {
        match value {
            Some(value) => program.env(name, value),
            None => program.env_remove(name),
        };
    }
    assert!(run_to_end(program, &[], b"", HANG).stdout == plain);
    assert!(fs::read(&path).unwrap() == plain);
    for tracer in &mut tracers {
        // This makes strace detach.
        signal(tracer.id(), libc::SIGTERM);
        tracer.wait().unwrap();
    }

    let (mut to, mut bad) = ([0; 4], Vec::new());
    for name in ["service", "mount", "program", "exec"] {
        let trace = fs::read_to_string(traces.path().join(name)).unwrap();
        assert!(trace.lines().count() > 10, "{name}:\n{trace}");
        for line in trace.lines() {
            // `call(3<kind or path>, …`
            let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
            let target = call.split_once('<').map_or("", |(_, rest)| rest);
            if call.starts_with("mmap(") {
                // Python maps models in this way, and nothing else may.
                let is_written =
                    call.contains("PROT_WRITE") && call.contains("MAP_SHARED") && !call.contains("ANONYMOUS");
                bad.extend(is_written.then(|| format!("{name}: {line}")));
                continue;
            }
            let moves_files =
                ["splice", "sendfile", "copy_file_range", "tee"].iter().any(|moves| call.starts_with(moves));
            if !moves_files && !["PLAINTEXT", "TEXT PLAIN", "AINTEXT P"].iter().any(|word| line.contains(word)) {
                continue;
            }
            let kinds = [&["TCP", "UNIX", "socket:", "TCPv6"][..], &["/dev/fuse"], &["pipe:"], &["/memfd:"]];
            match kinds.iter().position(|kind| kind.iter().any(|start| target.starts_with(start))) {
                Some(kind) => to[kind] += 1,
                None => bad.push(format!("{name}: {line}")),
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(to.iter().all(|count| *count > 0), "sockets, FUSE, pipes and memory: {to:?}");
}
