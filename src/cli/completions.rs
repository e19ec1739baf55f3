//! `loader completions`: what a shell completes after `loader`. It comes from the table of commands.

use super::command::{Command, Failure, print};

/// `run` calls [`run`] with all commands, of which this is one.
pub(super) const fn command(run: fn(&[&str]) -> Result<(), Failure>) -> Command {
    Command {
        name: "completions",
        arguments: "bash",
        summary: "print a script that makes bash complete commands, options and cached models",
        help: &["\
Prints a script for bash. To use it in one shell, or in all of them:

  source <(loader completions bash)
  loader completions bash > /etc/bash_completion.d/loader
"],
        run,
    }
}

pub(super) fn run(words: &[&str], commands: &[&Command]) -> Result<(), Failure> {
    match *words {
        ["bash"] => print(&script(commands)),
        _ => Err(Failure::arguments("name the shell, bash")),
    }
}

fn script(commands: &[&Command]) -> String {
    let names: Vec<&str> = commands.iter().map(|command| command.name).collect();
    let mut options = String::new();
    for command in commands {
        let words: Vec<&str> = command.options().into_iter().chain(["--help"]).collect();
        options.push_str(&format!("        {}) words='{}' ;;\n", command.name, words.join(" ")));
    }
    TEMPLATE.replace("NAMES", &names.join(" ")).replace("OPTIONS", &options)
}

/// Models may have spaces in their names, so they are completed line by line.
static TEMPLATE: &str = r#"_loader() {
    local word=$2 words='' command=${COMP_WORDS[1]} IFS=$' \n'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W 'NAMES --help --version' -- "$word"))
        return
    fi
    case $command in
OPTIONS    esac
    case $command:$COMP_CWORD:$3 in
    load:2:* | upload:2:* | remove:2:* | exec:*:--model)
        if [[ $word != -* ]]; then
            IFS=$'\n'
            COMPREPLY=($(compgen -W "$(loader models 2>/dev/null | sed 's/  .*//')" -- "$word"))
            return
        fi
        ;;
    completions:2:*) words='bash --help' ;;
    esac
    [[ $word == -* || $words == bash* ]] && COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _loader loader
"#;

#[cfg(test)]
mod tests {
    use super::super::COMMANDS;
    use super::script;

    #[test]
    fn every_command_and_option_is_completed() {
        let script = script(COMMANDS);
        for command in COMMANDS {
            assert!(script.contains(&format!("        {}) words='", command.name)), "{}", command.name);
        }
        assert!(script.contains("load) words='--continue --help' ;;"), "{script}");
        assert!(script.contains("exec) words='--model --help' ;;"), "{script}");
        assert!(script.contains("fingerprint) words='--explain --help' ;;"), "{script}");
    }
}
