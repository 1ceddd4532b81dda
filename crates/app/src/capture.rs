//! `selvedge capture`: rules of the kernel that hand connections of a network namespace to the proxy.

use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use selvedge_mesh::{
    capture::{self, Applied, Backend, Chosen, Item, MARK, Ports, Shown, Tools, Wish},
    spaces::Space,
};
use std::{fs, process::ExitCode};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Make the rules those asked for: nothing happens when they are so already, others of ours are replaced in one step.
    Apply(Wanted),
    /// Remove all rules of ours, and none of others.
    Remove(Place),
    /// Print the rules that are there and say whether they are those asked for.
    #[command(after_help = "Exits with 0 when the rules are those asked for, 1 when they are not.")]
    Show(Wanted),
}

#[derive(Debug, Clone, ClapArgs)]
struct Place {
    /// Network namespace: a name as in `ip netns list`, the path of a namespace file, or the id of a process in it; this one
    /// when not given.
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: Option<String>,
}

#[derive(Debug, Clone, ClapArgs)]
struct Wanted {
    #[command(flatten)]
    place: Place,
    /// Capture one direction only.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// Capture DNS queries too: UDP and TCP to port 53 of any address.
    #[arg(long)]
    dns: bool,
    /// Leave IPv6 alone: it passes by the proxy.
    #[arg(long)]
    no_ipv6: bool,
    /// Capture only what is bound for these ports or addresses: `80`, `8000-8099`, `10.0.0.0/8`, `fd00::/8`. Loopback
    /// addresses are captured only when named here.
    #[arg(long, visible_alias = "include", value_name = "LIST", value_delimiter = ',')]
    include_out: Vec<Item>,
    /// Leave alone what is bound for these ports or addresses.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    exclude_out: Vec<Item>,
    /// Capture only what comes to these ports or from these addresses. SSH (22) is captured only when named here.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    include_in: Vec<Item>,
    /// Leave alone what comes to these ports or from these addresses.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    exclude_in: Vec<Item>,
    /// Leave processes of these users alone, by name or number: the proxy's, if its sockets carry no mark, or a local
    /// resolver's.
    #[arg(long, value_name = "USER", value_delimiter = ',', value_parser = user)]
    uid: Vec<u32>,
    /// Leave sockets with this mark alone: those of the proxy.
    #[arg(long, value_name = "MARK", default_value_t = MARK, value_parser = mark)]
    mark: u32,
    /// Where the proxy takes outbound connections.
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().outbound)]
    outbound_port: u16,
    /// Where the proxy takes inbound connections.
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().inbound)]
    inbound_port: u16,
    /// Where the proxy takes HBONE; reached directly.
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().hbone)]
    hbone_port: u16,
    /// Where the proxy takes DNS queries.
    #[arg(long, value_name = "PORT", default_value_t = Ports::default().dns)]
    dns_port: u16,
    /// Ports for admin and health, reached directly.
    #[arg(long, value_name = "PORT", value_delimiter = ',', default_values_t = Ports::default().admin)]
    admin_port: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    Out,
    In,
}

impl Wanted {
    fn wish(&self) -> Wish {
        let chosen = |include: &Vec<Item>, exclude: &Vec<Item>, other| {
            let chosen = Chosen { include: include.clone(), exclude: exclude.clone() };
            (self.direction != Some(other)).then_some(chosen)
        };
        Wish {
            outbound: chosen(&self.include_out, &self.exclude_out, Direction::In),
            inbound: chosen(&self.include_in, &self.exclude_in, Direction::Out),
            dns: self.dns,
            ipv6: !self.no_ipv6,
            mark: self.mark,
            uids: self.uid.clone(),
            ports: Ports {
                outbound: self.outbound_port,
                inbound: self.inbound_port,
                hbone: self.hbone_port,
                dns: self.dns_port,
                admin: self.admin_port.clone(),
            },
        }
    }
}

impl Place {
    fn open(&self) -> Result<Space> {
        Ok(self.netns.as_deref().map_or(Ok(Space::current()), Space::open)?)
    }
}

/// A number, decimal or hexadecimal.
fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.ok().filter(|mark| *mark != 0).ok_or_else(|| "expected a number above 0, such as 0x539".into())
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let uid = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    uid.ok_or_else(|| format!("there is no user `{text}` in /etc/passwd; give its number"))
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tools = Tools::system();
    match &args.what {
        What::Apply(wanted) => apply(wanted, &tools),
        What::Remove(place) => {
            let space = place.open()?;
            match capture::remove(&space, &tools)? {
                true => say!(
                    "{space} is no longer captured; connections captured before stay with the proxy until they end"
                ),
                false => say!("{space} was not captured"),
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Show(wanted) => show(wanted, &tools),
    }
}

fn apply(wanted: &Wanted, tools: &Tools) -> Result<ExitCode> {
    let space = wanted.place.open()?;
    let Applied { backend, changed, instead } = capture::apply(&space, &wanted.wish(), tools)?;
    if let Some(reason) = instead {
        eprintln!("note: by iptables, for nftables cannot be used: {reason}");
    }
    match changed {
        true => say!("{space} is captured by {backend}"),
        false => say!("{space} is captured by {backend} already; nothing changed"),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(wanted: &Wanted, tools: &Tools) -> Result<ExitCode> {
    let space = wanted.place.open()?;
    let wish = wanted.wish();
    wish.check().map_err(anyhow::Error::msg).context("what is asked for makes no sense")?;
    let shown = capture::show(&space, &wish, tools)?;
    if shown.is_empty() {
        say!("{space} is not captured");
        return Ok(ExitCode::from(1));
    }
    for Shown { backend, rules, .. } in &shown {
        say!("# {backend}\n{}", rules.trim_end());
    }
    let all = |what: fn(&Shown) -> bool| shown.iter().all(what);
    let nft = shown.iter().filter(|s| s.backend == Backend::Nftables).count();
    let one = nft == 0 || nft == shown.len();
    let (line, code) = match () {
        () if !one => ("captured by nftables and iptables at once; `selvedge capture apply` puts that right", 1),
        () if !all(|s| s.intact) => {
            ("somebody has changed the rules since; `selvedge capture apply` puts them right", 1)
        }
        () if all(|s| s.as_wished) => ("these are the rules that the options ask for", 0),
        () => (
            "these are not the rules that the options ask for; `selvedge capture apply` with the same options makes them so",
            1,
        ),
    };
    say!("# {space}: {line}");
    Ok(ExitCode::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        wanted: Wanted,
    }

    fn wish(args: &str) -> Result<Wish, String> {
        let args = std::iter::once("capture").chain(args.split_whitespace());
        Cli::try_parse_from(args).map(|cli| cli.wanted.wish()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_make_a_wish() {
        assert_eq!(wish("").expect("no options"), Wish::default());
        let asked =
            wish("--include 80,10.0.0.0/8 --exclude-out 81 --exclude-in 9090 --uid 7,root --dns --mark 0x10 --no-ipv6");
        let item = |text: &str| text.parse::<Item>().expect(text);
        let expected = Wish {
            outbound: Some(Chosen { include: vec![item("80"), item("10.0.0.0/8")], exclude: vec![item("81")] }),
            inbound: Some(Chosen { include: vec![], exclude: vec![item("9090")] }),
            dns: true,
            ipv6: false,
            mark: 16,
            uids: vec![7, 0],
            ports: Ports::default(),
        };
        assert_eq!(asked.expect("options"), expected);
        assert!(wish("--direction out").expect("one direction").inbound.is_none());
    }

    #[test]
    fn wrong_options_say_what_is_expected() {
        assert!(wish("--exclude-out x").expect_err("x").contains("neither a port"));
        assert!(wish("--mark 0").expect_err("0").contains("above 0"));
        assert!(wish("--uid nobody-such").expect_err("a user").contains("there is no user `nobody-such`"));
    }
}
