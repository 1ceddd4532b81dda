//! Connections that the kernel redirects, in a network namespace of the test's own. Needs root, `ip`, `nft`, `curl` and
//! `python3`; without them a line says that this was left out.

use crate::support::{Make, counted, install, metrics, start};
use selvedge_compile::snapshot::{Arrive, Destinations, Find, MtlsMode, Netns, Speaks, Unknown};
use selvedge_proxy::{
    proxy::{Proxy, Settings},
    spaces::Spaces,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

const MARK: u32 = 0x539;
/// The workload, another server that nothing is known of, and addresses of services.
const RULES: &str = "
table inet selvedge {
  chain out {
    type nat hook output priority -100;
    meta mark 0x539 return
    ip daddr { 10.99.1.0/24, 10.99.2.1 } tcp dport 1-65535 redirect to :15001
    ip6 daddr fd99:1::/64 tcp dport 1-65535 redirect to :15001
    ip daddr 10.99.0.1 tcp dport != { 15001, 15006 } redirect to :15006
    ip6 daddr fd99::1 tcp dport != { 15001, 15006 } redirect to :15006
  }
}";

/// A namespace with servers in it, all of which end with it.
struct Space {
    name: String,
    children: Vec<Child>,
}

impl Drop for Space {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Enters it.
#[derive(Debug)]
struct Enter(String);

impl Spaces for Enter {
    fn within(&self, _netns: Netns, work: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let own = File::open("/proc/thread-self/ns/net")?;
        let there = File::open(format!("/run/netns/{}", self.0))?;
        let enter = |ns: &File| nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        enter(&there)?;
        let done = work();
        enter(&own).expect("the way back");
        done
    }
}

impl Space {
    /// `None` where this cannot be done.
    fn new(test: &str) -> Option<Self> {
        let tools = ["ip", "nft", "curl", "python3"];
        let missing =
            tools.iter().find(|tool| Command::new("which").arg(tool).output().is_ok_and(|o| !o.status.success()));
        if !nix::unistd::geteuid().is_root() || missing.is_some() {
            println!("left out: network namespaces need root, ip, nft, curl and python3");
            return None;
        }
        let space = Self { name: format!("sv-sidecar-{test}-{}", std::process::id()), children: Vec::new() };
        if !Command::new("ip").args(["netns", "add", &space.name]).status().is_ok_and(|s| s.success()) {
            println!("left out: this machine lets nobody make network namespaces");
            return None;
        }
        space.run("ip link set lo up");
        for address in ["10.99.0.1/32", "10.99.2.1/32", "fd99::1/128"] {
            space.run(&format!("ip address add {address} dev lo"));
        }
        space.run("ip route add 10.99.1.0/24 dev lo");
        space.run("ip -6 route add fd99:1::/64 dev lo");
        std::fs::write(space.rules(), RULES).expect("a file");
        space.run(&format!("nft -f {}", space.rules()));
        let _ = std::fs::remove_file(space.rules());
        Some(space)
    }

    fn rules(&self) -> String {
        std::env::temp_dir().join(&self.name).display().to_string()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }

    fn run(&self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let output = self.command(&words).output().expect("a command");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a Python program and waits until it has said a line: that it listens.
    fn python(&mut self, arguments: &[&str]) {
        let mut command = self.command(&["python3", "-u"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a server");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        self.children.push(child);
        assert!(!line.is_empty(), "{arguments:?} did not start");
    }

    fn web(&mut self, address: &str, port: &str) {
        self.python(&["-m", "http.server", "--bind", address, port]);
    }

    /// A server that speaks first.
    fn mail(&mut self, port: &str) {
        let program = "import socket,sys\n\
            s=socket.create_server(('10.99.0.1',int(sys.argv[1])))\n\
            print('ready')\n\
            while True:\n c,_=s.accept(); c.sendall(b'220 mail\\r\\n'); c.close()\n";
        self.python(&["-c", program, port]);
    }

    /// The status that curl sees, or how it failed.
    async fn curl(&self, url: &str) -> Result<String, i32> {
        let words = ["curl", "-s", "-g", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", url];
        let output = self.output(&words).await;
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            code => Err(code.unwrap_or(-1)),
        }
    }

    /// What a server says that speaks first.
    async fn greeting(&self, host: &str, port: &str) -> String {
        let program = "import socket,sys\n\
            c=socket.create_connection((sys.argv[1],int(sys.argv[2])),10)\n\
            print(c.recv(100).decode(),end='')\n";
        let output = self.output(&["python3", "-c", program, host, port]).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn output(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        tokio::task::spawn_blocking(move || command.output().expect("a command")).await.expect("an end")
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// `web` and `mail` behind service addresses, and the workload's own ports 8080 and 8082.
fn snapshot(unknown: Unknown, mtls: MtlsMode) -> Make {
    let mut make = Make { netns: Netns(1), ..Make::default() };
    let mut to = Destinations::default();
    let web = make.destination("shop/web:80", Speaks::Undeclared, address("10.99.0.1:8081"));
    let web6 = make.destination("shop/web6:80", Speaks::Http, address("[fd99::1]:8081"));
    let mail = make.destination("shop/mail:25", Speaks::Undeclared, address("10.99.0.1:2525"));
    let mut add = |to_address: &str, destination| {
        let key = address(to_address);
        to.addresses.insert((key.ip(), key.port()), destination);
    };
    add("10.99.1.10:80", web);
    add("[fd99:1::10]:80", web6);
    add("10.99.1.10:25", mail);
    let outbound = make.outbound(Find::OriginalDestination, to, unknown);
    make.listen(None, 15001, outbound);
    let ports = BTreeMap::from([
        (8081, make.port(Speaks::Http, mtls, address("10.99.0.1:8081"))),
        (2525, make.port(Speaks::Undeclared, mtls, address("10.99.0.1:2525"))),
    ]);
    let addresses = vec![address("10.99.0.1:1").ip(), address("[fd99::1]:1").ip()];
    let inbound = make.inbound(Arrive::OriginalDestination, None, addresses, ports, make.other(mtls));
    make.listen(None, 15006, inbound);
    make
}

fn proxy(space: &Space) -> Proxy {
    let spaces: Arc<dyn Spaces> = Arc::new(Enter(space.name.clone()));
    start(Settings { mark: Some(MARK), spaces: Some(spaces), ..Settings::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_workload_sends_comes_through_us() {
    let Some(mut space) = Space::new("out") else { return };
    space.web("10.99.0.1", "8081");
    space.web("fd99::1", "8081");
    space.web("10.99.2.1", "9000");
    space.mail("2525");
    let proxy = proxy(&space);
    install(&proxy, snapshot(Unknown::Pass, MtlsMode::Permissive));
    assert_eq!(space.curl("http://10.99.1.10/").await.as_deref(), Ok("200"), "{}", metrics(&proxy));
    assert_eq!(space.curl("http://[fd99:1::10]/").await.as_deref(), Ok("200"), "{}", metrics(&proxy));
    assert_eq!(space.greeting("10.99.1.10", "25").await, "220 mail\r\n");
    // Both were HTTP, and the rest was not.
    let line = "selvedge_http_requests_total{listener=\"shop/cart/outbound\",route=\"shop/all#0\",code=\"200\",protocol=\"http/1\"} 2";
    assert!(counted(&proxy, line), "{}", metrics(&proxy));
    // Nothing is known of this one.
    assert_eq!(space.curl("http://10.99.2.1:9000/").await.as_deref(), Ok("200"));
    assert!(counted(&proxy, "selvedge_mesh_passed_total{listener=\"shop/cart/outbound\"} 1"), "{}", metrics(&proxy));
    install(&proxy, snapshot(Unknown::Refuse, MtlsMode::Permissive));
    assert_eq!(space.curl("http://10.99.2.1:9000/").await.as_deref(), Ok("502"));
    assert_eq!(space.greeting("10.99.2.1", "9000").await, "");
    // Our own ports lead nowhere.
    for own in ["http://127.0.0.1:15001/", "http://[::1]:15001/", "http://10.99.1.10:15001/", "http://10.99.0.1:15001/"]
    {
        let answer = space.curl(own).await;
        assert!(answer.is_err() || answer.as_deref() == Ok("502"), "{own}: {answer:?}");
    }
    let line = "selvedge_mesh_refused_total{listener=\"shop/cart/outbound\",reason=\"no_destination\"} 3";
    assert!(counted(&proxy, line), "{}", metrics(&proxy));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_a_workload_comes_through_us() {
    let Some(mut space) = Space::new("in") else { return };
    for (host, port) in [("10.99.0.1", "8081"), ("10.99.0.1", "8083"), ("fd99::1", "8083")] {
        space.web(host, port);
    }
    space.mail("2525");
    let proxy = proxy(&space);
    for mode in [MtlsMode::Permissive, MtlsMode::Audit] {
        install(&proxy, snapshot(Unknown::Pass, mode));
        // A port that is declared, and two that are not.
        for url in ["http://10.99.0.1:8081/", "http://10.99.0.1:8083/", "http://[fd99::1]:8083/"] {
            assert_eq!(space.curl(url).await.as_deref(), Ok("200"), "{url} {mode:?} {}", metrics(&proxy));
        }
        assert_eq!(space.greeting("10.99.0.1", "2525").await, "220 mail\r\n");
    }
    assert!(counted(&proxy, "selvedge_mtls_audit_total{listener=\"shop/cart/inbound\"} 4"), "{}", metrics(&proxy));
    install(&proxy, snapshot(Unknown::Pass, MtlsMode::Strict));
    for url in ["http://10.99.0.1:8081/", "http://10.99.0.1:8083/", "http://[fd99::1]:8083/"] {
        assert!(space.curl(url).await.is_err(), "{url}");
    }
    let line = "selvedge_mesh_refused_total{listener=\"shop/cart/inbound\",reason=\"clear_text\"} 3";
    assert!(counted(&proxy, line), "{}", metrics(&proxy));
    for own in ["http://127.0.0.1:15006/", "http://10.99.0.1:15006/", "http://[::1]:15006/"] {
        assert!(space.curl(own).await.is_err(), "{own}");
    }
}
