//! What the command line says.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::failure::Outcome;
use crate::logging::LogFormat;
use crate::shards::{DoctorArgs, SchemaArgs};
use crate::verbs::{
    AuditCommand, LimitCommand, MoveCommand, OperationCommand, PlanCommand, RouterCommand, ShardCommand,
    TenantCommand, TokenCommand, TopArgs, UsageArgs, UserCommand, ValueCommand, WebhookCommand,
};
use crate::{demo, local, logging, serve, verbs};

/// A tenant router for sharded PostgreSQL.
///
/// Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 conflict, 5 still running.
#[derive(Parser)]
#[command(name = "switchyard", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Form of the log on standard error; text on a terminal if not given, else JSON.
    #[arg(long, global = true, value_enum, env = "SWITCHYARD_LOG_FORMAT")]
    log: Option<LogFormat>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a router.
    ///
    /// SIGHUP reads the configuration again. SIGTERM drains: no new clients, sessions end between transactions; a second
    /// one ends it at once. SIGUSR2 starts the program anew beside it, which takes over without an error to any client;
    /// if that does not start, this process goes on. SIGUSR1 takes no new clients, and lets sessions leave in their own time.
    Router {
        #[command(flatten)]
        file: ConfigFile,
        /// Take over from the router with this process id, of the same configuration: once this one serves, that one
        /// is told (SIGUSR1) to take no more clients.
        #[arg(long, value_name = "PID")]
        takeover: Option<u32>,
    },
    /// Run the control plane.
    ControlPlane(ConfigFile),
    /// Start local shards, a catalog, a control plane and a router, with tenants to try.
    Demo(demo::DemoArgs),
    /// Look at configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make what users are checked by.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Tenants.
    Tenant {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Shards.
    Shard {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: ShardCommand,
    },
    /// Plans: named sets of limits.
    Plan {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: PlanCommand,
    },
    /// What tenants may use.
    Limit {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: LimitCommand,
    },
    /// Long work: how far it is.
    Operation {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: OperationCommand,
    },
    /// Tokens of the API.
    Token {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Who did what.
    Audit {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Values that applications read, tenant by tenant.
    Value {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: ValueCommand,
    },
    /// What tenants have used.
    Usage {
        #[command(flatten)]
        remote: Remote,
        #[command(flatten)]
        args: UsageArgs,
    },
    /// The busiest tenants, live on this terminal.
    Top {
        #[command(flatten)]
        remote: Remote,
        #[command(flatten)]
        args: TopArgs,
    },
    /// How a tenant is. Exit code 1 if it is not well.
    Health {
        #[command(flatten)]
        remote: Remote,
        /// The tenant's id.
        tenant: String,
    },
    /// Routers, as they report themselves.
    Routers {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: RouterCommand,
    },
    /// Alerts, and where they are sent to.
    Webhook {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: WebhookCommand,
    },
    /// The schema that goes on the shards: install, protect, adopt, apply.
    Schema(SchemaArgs),
    /// Find what makes isolation void, with the SQL that mends it.
    Doctor(DoctorArgs),
    /// Moves of tenants between shards.
    Move {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: MoveCommand,
    },
    /// Users whom clients may log in as.
    User {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: UserCommand,
    },
}

#[derive(ClapArgs)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Report every mistake in a router's file, and warnings.
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum AuthCommand {
    /// Read a password from the terminal or standard input and print its SCRAM verifier.
    Hash {
        /// Iterations of PBKDF2.
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(4096..=1_000_000))]
        iterations: u32,
    },
}

/// Where the control plane is, and how to answer.
#[derive(ClapArgs)]
pub(crate) struct Remote {
    /// The control plane.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "SWITCHYARD_URL",
        default_value = "http://127.0.0.1:6480"
    )]
    pub(crate) api: String,
    /// A token for it. Better given in the environment, where `ps` does not show it.
    #[arg(long, global = true, env = "SWITCHYARD_TOKEN", hide_env_values = true, default_value = "")]
    pub(crate) token: String,
    /// Form of the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = OutputFormat::Table)]
    pub(crate) output: OutputFormat,
}

/// Form of an answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Table,
    /// For programs: what the API answers.
    Json,
}

impl Args {
    pub(crate) fn run(self) -> Outcome {
        match self.command {
            Command::Router { file, takeover } => {
                logging::init(self.log, "info")?;
                serve::router(&file.config, takeover)
            }
            Command::ControlPlane(file) => {
                logging::init(self.log, "info")?;
                serve::control_plane(&file.config)
            }
            Command::Demo(args) => {
                logging::init(self.log, "warn")?;
                demo::run(args)
            }
            Command::Config(ConfigCommand::Check { file }) => local::config_check(&file),
            Command::Auth(AuthCommand::Hash { iterations }) => local::auth_hash(iterations),
            Command::Tenant { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Shard { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Plan { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Limit { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Operation { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Token { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Audit { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Value { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Usage { remote, args } => verbs::run(&remote, async |api| args.run(api).await),
            Command::Top { remote, args } => verbs::run(&remote, async |api| args.run(api).await),
            Command::Health { remote, tenant } => {
                verbs::run(&remote, async |api| verbs::health(api, &tenant).await)
            }
            Command::Routers { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Webhook { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::Schema(args) => {
                logging::init(self.log, "warn")?;
                args.run()
            }
            Command::Doctor(args) => {
                logging::init(self.log, "warn")?;
                args.run()
            }
            Command::Move { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
            Command::User { remote, command } => verbs::run(&remote, async |api| command.run(api).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_of_the_surface_parse() {
        for line in [
            "switchyard router --config f",
            "switchyard router --config f --takeover 4711",
            "switchyard control-plane --config f --log json",
            "switchyard demo --state f --context plain --shards 3 --tenants 2 --routers 2 --port 7000",
            "switchyard tenant create acme -o json",
            "switchyard tenant place acme --to s2",
            "switchyard shard add s1 --url postgres://a@b/c",
            "switchyard user create bob --tenant acme --tenant globex",
            "switchyard tenant delete acme --yes --grace 0 --wait",
            "switchyard plan create basic connections=20",
            "switchyard limit set acme storage=10GiB",
            "switchyard token create t --role application --tenant acme",
            "switchyard audit verify",
            "switchyard operation wait op_1",
            "switchyard usage acme --by hour --from 2026-11-01 --csv",
            "switchyard health acme",
            "switchyard routers list",
            "switchyard move start acme --to s2 --wait",
            "switchyard move start acme --to s2 --dry-run -o json",
            "switchyard move start --tenants-from f --to s2",
            "switchyard move watch acme",
            "switchyard shard drain s1 --wait",
            "switchyard shard admin s1 --user postgres",
            "switchyard config check f",
            "switchyard auth hash",
            "switchyard schema install --shard s1=postgres://a@b/c --key-file k --revoke activity,signals -o json",
            "switchyard schema rotate-key --config f --key-file k --retire",
            "switchyard schema protect --config f --mode sealed --table leads --apply",
            "switchyard schema adopt --shards-file f --tenant acme --table leads",
            "switchyard schema apply 0001.sql --config f --schemas tenant_%",
            "switchyard doctor --config f --admin-user postgres -o json",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Args::try_parse_from(["switchyard", "tenant", "fly"]).is_err());
    }
}
