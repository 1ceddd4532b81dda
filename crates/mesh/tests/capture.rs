//! Capture in network namespaces of the kernel: unmodified programs on one side, a listener that asks for original
//! destinations on the other. Needs root; says so and leaves itself out otherwise.

use hickory_proto::{
    op::{Message, OpCode, Query},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use selvedge_compile::snapshot::DnsNames;
use selvedge_mesh::{
    capture::{self, Applied, Backend, CaptureError, Chosen, Item, MARK, Tools, Wish},
    dns,
    spaces::Space,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    ffi::OsString,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{self, Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Two machines with a cable between them: `10.77.0.1` and `fd77::1` is where rules are applied, `.2` is elsewhere.
struct Pair {
    here: String,
    there: String,
}

const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";

impl Pair {
    /// `None`: not to be had here.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sv-capture-{}-{}", process::id(), NEXT.fetch_add(1, Relaxed));
        let pair = Self { here: format!("{name}h"), there: format!("{name}t") };
        if !rustix::process::geteuid().is_root() || !sh(&format!("ip netns add {}", pair.here)).status.success() {
            selvedge_testkit::left_out("network namespaces cannot be made here (that needs root and `ip`)");
            return None;
        }
        let Self { here, there } = &pair;
        for line in [
            format!("ip netns add {there}"),
            format!("ip -n {here} link add eth0 type veth peer name eth0 netns {there}"),
            format!("ip -n {here} address add {HERE}/24 dev eth0"),
            format!("ip -n {there} address add {THERE}/24 dev eth0"),
            format!("ip -n {here} address add fd77::1/64 dev eth0 nodad"),
            format!("ip -n {there} address add fd77::2/64 dev eth0 nodad"),
            format!("ip -n {here} link set lo up"),
            format!("ip -n {there} link set lo up"),
            format!("ip -n {here} link set eth0 up"),
            format!("ip -n {there} link set eth0 up"),
            // What is neither here nor there is behind the other one: service addresses have a way out.
            format!("ip -n {here} route add default via {THERE}"),
            format!("ip -n {here} -6 route add default via fd77::2"),
        ] {
            let out = sh(&line);
            assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Some(pair)
    }

    fn here(&self) -> Space {
        Space::open(&self.here).expect("the namespace")
    }

    fn there(&self) -> Space {
        Space::open(&self.there).expect("the namespace")
    }

    /// All rules, chain by chain; in which order chains stand means nothing.
    fn rules(&self) -> String {
        // Tables of the old interface are seen by its own tools alone, and made when those look for them.
        let old = |family: &str| {
            let look = |table| {
                format!("grep -q {table} /proc/net/{family}_tables_names && {family}tables-legacy-save -t {table}")
            };
            let listed = ["raw", "nat"].map(|table| self.run(&format!("sh -c '{}'", look(table)))).concat();
            let lines = listed.lines().filter(|line| !line.starts_with('#'));
            lines.fold(String::new(), |out, line| out + line.split(" [").next().unwrap_or(line) + "\n")
        };
        self.new_rules() + &old("ip") + &old("ip6")
    }

    fn new_rules(&self) -> String {
        let (mut table, mut chain, mut lines) = ("", "", Vec::new());
        let listed = text(&sh(&format!("ip netns exec {} nft list ruleset", self.here)));
        // The kernel talks of its own accord, and what it says is counted.
        let uncounted = |line: &str| match line.split_once("counter packets ") {
            Some((before, after)) => format!("{before}{}", after.splitn(4, ' ').nth(3).unwrap_or_default()),
            None => line.to_owned(),
        };
        let listed: Vec<String> = listed.lines().map(uncounted).collect();
        for line in listed.iter().map(String::as_str).filter(|line| !line.is_empty()) {
            match line.trim_start_matches('\t').len() + 1 {
                _ if !line.starts_with('\t') => (table, chain) = (line, ""),
                length if length == line.len() => chain = line,
                _ => {}
            }
            lines.push((table, chain, line));
        }
        lines.sort_by_key(|(table, chain, _)| (*table, *chain));
        lines.into_iter().fold(String::new(), |out, (_, _, line)| out + line + "\n")
    }

    /// What a program here prints.
    fn run(&self, command: &str) -> String {
        text(&sh(&format!("ip netns exec {} {command}", self.here)))
    }

    fn does(&self, commands: &str) -> bool {
        sh(&format!("ip netns exec {} sh -c '{commands}'", self.here)).status.success()
    }

    fn run_there(&self, command: &str) -> String {
        text(&sh(&format!("ip netns exec {} {command}", self.there)))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.here, &self.there] {
            sh(&format!("ip netns del {name}"));
        }
    }
}

fn sh(command: &str) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new("sh").args(["-c", command]).env("PATH", path).output().expect("a shell")
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn tools() -> Tools {
    Tools::in_path(format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()).into())
}

/// Answers each connection with who it was meant for: `to=ADDRESS`.
fn listen(space: &Space, address: &str) {
    let address: SocketAddr = address.parse().expect("an address");
    let listener = space.within(|| bind(address)).expect("inside").expect("a listener");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept().map(|(s, a)| (std::net::TcpStream::from(s), a)) {
            let socket = socket2::SockRef::from(&stream);
            let v6 = stream
                .local_addr()
                .is_ok_and(|local| matches!(local.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none()));
            let original = if v6 { socket.original_dst_v6() } else { socket.original_dst_v4() };
            let local = stream.local_addr().map(|local| SocketAddr::new(local.ip().to_canonical(), local.port())).ok();
            let to = original.ok().and_then(|a| a.as_socket()).filter(|to| Some(*to) != local);
            let body = to.map_or("to=me".to_owned(), |to| format!("to={to}"));
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            // Signals interrupt a wait with a timeout; a connection closed with something unread is reset.
            while stream.read(&mut [0; 4096]).is_err_and(|e| e.kind() == std::io::ErrorKind::Interrupted) {}
            let _ = write!(stream, "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
}

fn bind(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(64)?;
    Ok(socket)
}

fn curl(target: &str) -> String {
    format!("curl -s --max-time 60 --noproxy '*' http://{target}/")
}

fn chosen(include: &str, exclude: &str) -> Option<Chosen> {
    let items = |text: &str| text.split_terminator(',').map(|item| item.parse::<Item>().expect(item)).collect();
    Some(Chosen { include: items(include), exclude: items(exclude) })
}

fn apply(pair: &Pair, wish: &Wish, tools: &Tools) -> Applied {
    capture::apply(&pair.here(), wish, tools).expect("applied")
}

/// Each way to have it done, by the name of its program: nftables, a PATH without it, and one with only the interface of kernels
/// that have no nftables.
fn each(test: impl Fn(&Pair, &Tools, &str)) {
    let Some(pair) = Pair::new() else { return };
    test(&pair, &tools(), "nft");
    let nf_tables = ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"];
    for (program, without) in [("iptables", [].as_slice()), ("iptables-legacy", &nf_tables)] {
        let folder = tempfile::tempdir().expect("a folder");
        link_iptables(folder.path(), without);
        let Some(pair) = Pair::new() else { return };
        if program == "iptables-legacy" && !pair.does("iptables-legacy -nt nat -L && ip6tables-legacy -nt nat -L") {
            return eprintln!("left out: this kernel has nf_tables alone, so that iptables-legacy does nothing");
        }
        test(&pair, &Tools::in_path(folder.path().into()), program);
    }
}

/// A folder with all programs of iptables but some.
fn link_iptables(folder: &Path, without: &[&str]) {
    for name in ["iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"] {
        for verb in ["save", "restore"] {
            let name = format!("{name}-{verb}");
            let places = ["/usr/sbin", "/sbin"].map(|place| PathBuf::from(place).join(&name));
            if let Some(file) = places.iter().find(|file| file.exists())
                && !without.contains(&name.as_str())
            {
                symlink(file, folder.join(&name)).expect("a link");
            }
        }
    }
}

fn script(folder: &Path, name: &str, body: &str) {
    let file = folder.join(name);
    fs::write(&file, format!("#!/bin/sh\n{body}\n")).expect("a script");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn outbound_connections_reach_the_proxy_with_their_destination() {
    each(|pair, tools, program| {
        listen(&pair.here(), "[::]:15001");
        listen(&pair.there(), "[::]:8080");
        listen(&pair.here(), "127.0.0.1:8080");
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=me", "before");
        let applied = apply(pair, &Wish::default(), tools);
        let backend = if program == "nft" { Backend::Nftables } else { Backend::Iptables };
        assert_eq!((applied.backend, applied.changed), (backend, true));
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=10.77.0.2:8080");
        assert_eq!(pair.run(&curl("10.96.0.10:80")), "to=10.96.0.10:80", "an address that nobody has");
        assert_eq!(pair.run(&curl("[fd77::2]:8080")), "to=[fd77::2]:8080");
        assert_eq!(pair.run(&curl("127.0.0.1:8080")), "to=me", "loopback is left alone");
        // The other side is not captured.
        assert_eq!(pair.run_there(&curl("10.77.0.2:8080")), "to=me");
    });
}

#[test]
fn what_is_excluded_passes_by() {
    each(|pair, tools, _| {
        listen(&pair.here(), "[::]:15001");
        for port in [8080, 8081, 9000] {
            listen(&pair.there(), &format!("[::]:{port}"));
        }
        let exclude = |exclude: &str| Wish { outbound: chosen("", exclude), ..Wish::default() };
        apply(pair, &exclude("8081-8090"), tools);
        assert_eq!(pair.run(&curl("10.77.0.2:8081")), "to=me");
        assert_eq!(pair.run(&curl("[fd77::2]:8081")), "to=me");
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=10.77.0.2:8080");
        apply(pair, &exclude("10.77.0.0/16"), tools);
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=me");
        assert_eq!(pair.run(&curl("[fd77::2]:8080")), "to=[fd77::2]:8080");
        apply(pair, &exclude("fd77::2"), tools);
        assert_eq!(pair.run(&curl("[fd77::2]:8080")), "to=me");
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=10.77.0.2:8080");
        apply(pair, &Wish { ipv6: false, ..Wish::default() }, tools);
        assert_eq!(pair.run(&curl("[fd77::2]:8080")), "to=me");
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=10.77.0.2:8080");
        apply(pair, &Wish { outbound: chosen("8080,127.9.0.0/16", ""), ..Wish::default() }, tools);
        assert_eq!(pair.run(&curl("10.77.0.2:9000")), "to=me");
        assert_eq!(pair.run(&curl("10.77.0.2:8080")), "to=10.77.0.2:8080");
        assert_eq!(pair.run(&curl("127.9.0.1:7")), "to=127.9.0.1:7", "loopback that is named");
    });
}

#[test]
fn the_proxy_itself_passes_by() {
    each(|pair, tools, _| {
        listen(&pair.here(), "[::]:15001");
        listen(&pair.there(), "[::]:8080");
        listen(&pair.here(), "[::]:15006");
        listen(&pair.here(), "0.0.0.0:8080");
        apply(pair, &Wish { uids: vec![65534], ..Wish::default() }, tools);
        let as_user = |uid| format!("setpriv --reuid {uid} --clear-groups {}", curl("10.77.0.2:8080"));
        assert_eq!(pair.run(&as_user(65534)), "to=me");
        assert_eq!(pair.run(&as_user(65533)), "to=10.77.0.2:8080");
        let marked = |target: &str| {
            let target: SocketAddr = target.parse().expect("an address");
            let connect = || {
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_mark(MARK)?;
                socket.connect(&target.into())?;
                Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
            };
            let mut stream = pair.here().within(connect).expect("inside").expect("a connection");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer.rsplit("\r\n").next().expect("a body").to_owned()
        };
        assert_eq!(marked("10.77.0.2:8080"), "to=me");
        assert_eq!(marked("[fd77::2]:8080"), "to=me");
        // To the application beside it, by the address by which others know it: not back into the proxy.
        assert_eq!(marked("10.77.0.1:8080"), "to=me");
    });
}

#[test]
fn a_port_of_a_try_that_the_proxy_gave_up_is_captured() {
    each(|pair, tools, program| {
        listen(&pair.here(), "[::]:15001");
        apply(pair, &Wish::default(), tools);
        let target: SocketAddr = "10.96.0.10:80".parse().expect("an address that nobody has");
        let connect = |mark: u32, patience: Duration| {
            let connect = || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_mark(mark)?;
                // The one port that there is for this place.
                socket.bind(&SocketAddr::new(HERE.parse().expect("an address"), 40_000).into())?;
                socket.connect_timeout(&target.into(), patience)?;
                Ok::<_, std::io::Error>(std::net::TcpStream::from(socket))
            };
            pair.here().within(connect).expect("inside")
        };
        assert!(connect(MARK, Duration::from_millis(100)).is_err(), "nobody is there");
        let mut stream = connect(0, Duration::from_secs(60)).unwrap_or_else(|e| panic!("no proxy by {program}: {e}"));
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.ends_with("to=10.96.0.10:80"), "{program}: {answer}");
    });
}

#[test]
fn inbound_connections_reach_the_proxy_with_their_destination() {
    each(|pair, tools, _| {
        for port in ["15006", "15008", "15000", "22", "8080", "9090"] {
            listen(&pair.here(), &format!("[::]:{port}"));
        }
        apply(pair, &Wish { inbound: chosen("", "9090"), ..Wish::default() }, tools);
        assert_eq!(pair.run_there(&curl("10.77.0.1:8080")), "to=10.77.0.1:8080");
        assert_eq!(pair.run_there(&curl("[fd77::1]:8080")), "to=[fd77::1]:8080");
        assert_eq!(pair.run_there(&curl("10.77.0.1:81")), "to=10.77.0.1:81", "whether or not somebody listens");
        for port in ["15008", "15006", "15000", "22", "9090"] {
            assert_eq!(pair.run_there(&curl(&format!("10.77.0.1:{port}"))), "to=me", "{port}");
        }
        apply(pair, &Wish { inbound: chosen("8080,22", THERE), ..Wish::default() }, tools);
        assert_eq!(pair.run_there(&curl("10.77.0.1:8080")), "to=me", "from an excluded source");
        assert_eq!(pair.run_there(&curl("[fd77::1]:8080")), "to=[fd77::1]:8080");
        assert_eq!(pair.run_there(&curl("[fd77::1]:22")), "to=[fd77::1]:22");
        assert_eq!(pair.run_there(&curl("[fd77::1]:9090")), "to=me");
    });
}

#[test]
fn connections_from_before_live_on() {
    each(|pair, tools, _| {
        let (heard, hears) = mpsc::channel();
        let listener = pair.there().within(|| bind("10.77.0.2:7000".parse().expect("an address"))).expect("inside");
        let listener = listener.expect("a listener");
        thread::spawn(move || {
            let mut stream = std::net::TcpStream::from(listener.accept().expect("a connection").0);
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && heard.send(byte[0]).is_ok() {}
        });
        let connect = || std::net::TcpStream::connect("10.77.0.2:7000");
        let mut stream = pair.here().within(connect).expect("inside").expect("a connection");
        let mut say = |byte| {
            stream.write_all(&[byte]).expect("written");
            assert_eq!(hears.recv_timeout(Duration::from_secs(60)), Ok(byte));
        };
        say(1);
        apply(pair, &Wish::default(), tools);
        say(2);
        apply(pair, &Wish { dns: true, ..Wish::default() }, tools);
        capture::remove(&pair.here(), tools).expect("removed");
        say(3);
    });
}

#[test]
fn the_same_again_changes_nothing_and_removal_leaves_nothing() {
    each(|pair, tools, program| {
        pair.run("nft add table inet others");
        pair.run("nft add chain inet others input '{ type filter hook input priority 0; }'");
        if program != "nft" {
            // The first call of iptables makes empty tables of its own.
            for (tool, address) in [(program, "192.0.2.1"), (&program.replacen("ip", "ip6", 1), "fd00::1")] {
                for chain in ["raw -A OUTPUT", "nat -A OUTPUT", "nat -A PREROUTING"] {
                    pair.run(&format!("{tool} -t {chain} -d {address} -j RETURN"));
                }
            }
        }
        let before = pair.rules();
        let (here, wish) = (pair.here(), Wish::default());
        assert_eq!(capture::show(&here, &wish, tools).expect("shown"), []);
        assert!(!capture::remove(&here, tools).expect("nothing to remove"));
        assert!(apply(pair, &wish, tools).changed);
        let applied = pair.rules();
        assert!(!apply(pair, &wish, tools).changed);
        assert_eq!(pair.rules(), applied);
        let shown = capture::show(&here, &wish, tools).expect("shown");
        assert!(!shown.is_empty() && shown.iter().all(|s| s.intact && s.as_wished), "{shown:#?}");
        let other = Wish { dns: true, uids: vec![7], ..Wish::default() };
        let shown = capture::show(&here, &other, tools).expect("shown");
        assert!(shown.iter().all(|s| s.intact && !s.as_wished), "{shown:#?}");
        assert!(apply(pair, &other, tools).changed);
        assert!(!apply(pair, &other, tools).changed);
        for (nft, iptables) in [("inbound", "nat -F SELVEDGE_IN"), ("apart", "raw -F SELVEDGE_RAW")] {
            pair.run(&match program {
                "nft" => format!("nft flush chain inet selvedge {nft}"),
                program => format!("{program} -t {iptables}"),
            });
            let shown = capture::show(&here, &other, tools).expect("shown");
            assert!(shown.iter().any(|s| !s.intact && !s.as_wished), "{shown:#?}");
            assert!(apply(pair, &other, tools).changed, "put right");
        }
        assert!(apply(pair, &wish, tools).changed);
        assert_eq!(pair.rules(), applied, "as at first");
        assert!(capture::remove(&here, tools).expect("removed"));
        assert_eq!(pair.rules(), before);
    });
}

#[test]
fn rules_of_the_other_tool_are_taken_over() {
    let Some(pair) = Pair::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    link_iptables(folder.path(), &[]);
    let wish = Wish::default();
    apply(&pair, &wish, &Tools::in_path(folder.path().into()));
    let applied = apply(&pair, &wish, &tools());
    assert_eq!((applied.backend, applied.changed), (Backend::Nftables, true));
    assert!(!pair.rules().contains("SELVEDGE"), "{}", pair.rules());
    assert!(!apply(&pair, &wish, &tools()).changed);
}

#[test]
fn a_kernel_without_nftables_is_captured_by_iptables() {
    let Some(pair) = Pair::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    link_iptables(folder.path(), &[]);
    script(
        folder.path(),
        "nft",
        "echo 'netlink: Error: cache initialization failed: Protocol not supported' >&2; exit 1",
    );
    let with_broken_nft = Tools::in_path(folder.path().into());
    let applied = apply(&pair, &Wish::default(), &with_broken_nft);
    assert_eq!(applied.backend, Backend::Iptables);
    assert!(applied.instead.expect("a reason").contains("Protocol not supported"));
    // Neither will do: the error names both and what the kernel needs.
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["nft", "iptables-save", "ip6tables-save"] {
        script(folder.path(), name, "echo \"$0: Table does not exist (do you need to insmod?)\" >&2; exit 3");
    }
    let error = capture::apply(&pair.here(), &Wish::default(), &Tools::in_path(folder.path().into()));
    let Err(CaptureError::Kernel { .. }) = &error else { panic!("{error:?}") };
    let message = error.expect_err("an error").to_string();
    assert!(message.contains("nothing was changed") && message.contains("nft_redir"), "{message}");
}

#[test]
fn when_ipv6_fails_ipv4_is_put_back() {
    let Some(pair) = Pair::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    link_iptables(folder.path(), &["ip6tables-restore", "ip6tables-legacy-restore"]);
    for name in ["ip6tables-restore", "ip6tables-legacy-restore"] {
        script(
            folder.path(),
            name,
            "echo 'ip6tables-restore: line 5 failed: No chain/target/match by that name' >&2; exit 1",
        );
    }
    let broken = Tools::in_path(folder.path().into());
    let error = capture::apply(&pair.here(), &Wish::default(), &broken).expect_err("no IPv6");
    assert!(error.to_string().contains("--no-ipv6"), "{error}");
    assert!(!pair.rules().contains("SELVEDGE"), "{}", pair.rules());
    // Over rules from before: those are back, order and all.
    let folder = tempfile::tempdir().expect("a folder");
    link_iptables(folder.path(), &[]);
    let whole = Tools::in_path(folder.path().into());
    let first = Wish { dns: true, uids: vec![7], ..Wish::default() };
    apply(&pair, &first, &whole);
    let before = pair.rules();
    capture::apply(&pair.here(), &Wish::default(), &broken).expect_err("no IPv6");
    assert_eq!(pair.rules(), before);
    assert!(!apply(&pair, &first, &whole).changed);
    let v4 = Wish { ipv6: false, ..Wish::default() };
    assert!(apply(&pair, &v4, &whole).changed);
    assert!(!apply(&pair, &v4, &whole).changed);
}

#[test]
fn without_any_tool_the_error_says_what_to_install() {
    let nothing = Tools::in_path(OsString::from("/nowhere"));
    match capture::apply(&Space::current(), &Wish::default(), &nothing) {
        Err(error @ CaptureError::NoTool { .. }) => assert!(error.to_string().contains("package nftables"), "{error}"),
        Err(CaptureError::Rights { .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// What [`serve_names`] answers.
const ELSEWHERE: &str = "192.0.2.1";

/// A server of names elsewhere: every name is at one address.
fn serve_names(space: &Space, address: &'static str) {
    let socket = space.within(|| UdpSocket::bind(address)).expect("inside").expect("a socket");
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            answer.queries = query.queries.clone();
            if query.queries[0].query_type == RecordType::A {
                let name = query.queries[0].name.clone();
                answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
            }
            let _ = socket.send_to(&answer.to_vec().expect("bytes"), peer);
        }
    });
}

fn mesh_names() -> Arc<DnsNames> {
    let name = "orders.shop.svc.cluster.local".to_owned();
    Arc::new(DnsNames {
        names: Arc::new(
            [(name, vec!["10.96.0.10".parse().expect("an address"), "fd00::10".parse().expect("an address")])].into(),
        ),
        search: vec!["shop.svc.cluster.local".into(), "svc.cluster.local".into()],
        ttl: Duration::from_secs(30),
    })
}

/// The `resolv.conf` that `ip netns exec` shows to programs in a namespace.
struct ResolvConf(PathBuf);

impl ResolvConf {
    fn write(pair: &Pair, text: &str) -> Self {
        let folder = Path::new("/etc/netns").join(&pair.here);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("resolv.conf"), text).expect("a file");
        Self(folder)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The proxy's server of names, which asks the other machine for what it does not know.
fn serve_mesh_names(pair: &Pair) -> (tokio::runtime::Runtime, dns::Dns) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config = dns::Config {
        upstream: vec!["10.77.0.2:53".parse().expect("an address")],
        space: pair.here(),
        mark: Some(MARK),
        ..dns::Config::default()
    };
    let guard = runtime.enter();
    let server = dns::Dns::start(config, mesh_names()).expect("a server");
    drop(guard);
    assert_eq!(server.listening().len(), 2);
    (runtime, server)
}

#[test]
fn names_are_asked_of_the_proxy_whatever_the_server() {
    each(|pair, tools, _| {
        serve_names(&pair.there(), "10.77.0.2:53");
        let (_runtime, server) = serve_mesh_names(pair);
        apply(pair, &Wish { dns: true, ..Wish::default() }, tools);
        // Nobody has these addresses.
        for conf in [
            "nameserver 192.0.2.53",
            "nameserver fd00::53",
            "nameserver 127.0.0.53",
            "nameserver 192.0.2.53\noptions use-vc",
        ] {
            let _conf = ResolvConf::write(pair, conf);
            let hosts = |name: &str| {
                let out = pair.run(&format!("getent ahosts {name}"));
                let mut addresses: Vec<_> = out.lines().filter_map(|line| line.split(' ').next()).collect();
                addresses.dedup();
                addresses.sort_unstable();
                addresses.join(" ")
            };
            assert_eq!(hosts("orders.shop"), "10.96.0.10 fd00::10", "{conf}");
            assert_eq!(hosts("orders"), "10.96.0.10 fd00::10", "{conf}");
            assert_eq!(hosts("www.example.com"), "192.0.2.1", "{conf}");
        }
        many_queries(pair);
        // Left alone again, they go where they are sent.
        apply(pair, &Wish { dns: true, outbound: chosen("", "10.77.0.0/16"), ..Wish::default() }, tools);
        let _conf = ResolvConf::write(pair, "nameserver 10.77.0.2");
        assert!(pair.run("getent ahosts orders.shop.svc.cluster.local").starts_with("192.0.2.1 "));
        assert!(server.count(dns::Outcome::Mesh) >= 16 && server.count(dns::Outcome::Failed) == 0);
    });
}

/// Some resolvers keep a socket for as long as they live; what the kernel knows of it must not outlive the rules.
#[test]
fn a_socket_that_asked_before_follows_the_rules_of_now() {
    each(|pair, tools, _| {
        // As where containers run. Without rules of others the kernel remembers nothing once ours are gone.
        let others = "add table inet others; add chain inet others out { type nat hook postrouting priority 100; }; \
                      add rule inet others out oifname docker0 masquerade";
        pair.run(&format!("nft '{others}'"));
        assert!(pair.rules().contains("masquerade"));
        serve_names(&pair.there(), "10.77.0.2:53");
        serve_names(&pair.there(), "[fd77::2]:53");
        let _server = serve_mesh_names(pair);
        let sockets = [("0.0.0.0:0", "10.77.0.2:53"), ("[::]:0", "[fd77::2]:53")].map(|(from, to)| {
            let socket = pair.here().within(|| UdpSocket::bind(from)).expect("inside").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
            socket.connect(to).expect("a server");
            socket
        });
        let answered = |when: &str, address: &str| {
            for socket in &sockets {
                assert_eq!(asked(socket, "orders.shop.svc.cluster.local.").expect("an answer"), address, "{when}");
            }
        };
        let dns = Wish { dns: true, ..Wish::default() };
        answered("before there were rules", ELSEWHERE);
        apply(pair, &dns, tools);
        answered("captured", "10.96.0.10");
        apply(pair, &Wish { outbound: chosen("", "10.77.0.0/16,fd77::/16"), ..dns.clone() }, tools);
        answered("left alone", ELSEWHERE);
        apply(pair, &dns, tools);
        answered("captured again", "10.96.0.10");
        apply(pair, &Wish::default(), tools);
        answered("without DNS", ELSEWHERE);
        apply(pair, &dns, tools);
        answered("captured once more", "10.96.0.10");
        assert!(capture::remove(&pair.here(), tools).expect("removed"));
        answered("removed", ELSEWHERE);
    });
}

/// What the server of a connected socket says where a name is.
fn asked(socket: &UdpSocket, name: &str) -> std::io::Result<String> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    socket.send(&query.to_vec().expect("bytes"))?;
    let mut buffer = [0; 4096];
    // A signal, as of a child that ended, interrupts a wait with a timeout.
    let length = rustix::io::retry_on_intr(|| {
        socket.recv(&mut buffer).map_err(|e| rustix::io::Errno::from_io_error(&e).expect("of the kernel"))
    })?;
    let answer = Message::from_vec(&buffer[..length]).expect("an answer");
    assert_eq!((answer.metadata.id, answer.answers.len()), (query.metadata.id, 1), "{answer}");
    Ok(answer.answers[0].data.to_string())
}

/// Ports of many short-lived sockets are used again while the kernel still remembers that they were redirected.
fn many_queries(pair: &Pair) {
    let sockets = || {
        for n in 0..1000 {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            socket.connect("10.77.0.2:53")?;
            assert_eq!(asked(&socket, &format!("host{n}.example.com."))?, ELSEWHERE);
        }
        Ok::<_, std::io::Error>(())
    };
    pair.here().within(sockets).expect("inside").expect("all answered");
}
