use super::*;

fn items(text: &str) -> Vec<Item> {
    text.split(',').map(|item| item.parse().expect(item)).collect()
}

/// Everything that can be wished at once.
fn full() -> Wish {
    Wish {
        outbound: Some(Chosen {
            include: items("80,443,8000-8099,10.0.0.0/8,fd00::/8"),
            exclude: items("10.9.0.0/16,5432,fe80::/10"),
        }),
        inbound: Some(Chosen { include: items("22,8080"), exclude: items("192.0.2.7,9090-9099,2001:db8::/32") }),
        dns: true,
        uids: vec![1337, 101],
        ..Wish::default()
    }
}

#[test]
fn nft_text_of_the_plain_wish() {
    let expected = "\
add table inet selvedge
delete table inet selvedge
table inet selvedge {
	chain wish_DIGEST {
	}
	chain apart {
		type filter hook output priority -300; policy accept;
		meta mark & 0xfff == 0x539 meta l4proto tcp ct original zone set 1337
	}
	chain outbound {
		type nat hook output priority -110; policy accept;
		meta mark & 0xfff == 0x539 ct mark set 0x539 accept
		oifname \"lo\" accept
		tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001
	}
	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		iifname \"lo\" accept
		ct mark & 0xfff == 0x539 accept
		fib daddr type != local accept
		tcp dport { 22, 15000, 15006, 15008 } accept
		tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15006
	}
}
";
    assert_eq!(undated(&nft_script(&Wish::default()), "wish_"), expected);
}

#[test]
fn nft_text_of_everything() {
    let expected = "\
add table inet selvedge
delete table inet selvedge
table inet selvedge {
	chain wish_DIGEST {
	}
	chain apart {
		type filter hook output priority -300; policy accept;
		meta mark & 0xfff == 0x539 meta l4proto tcp ct original zone set 1337
		meta skuid { 1337, 101 } meta l4proto tcp ct original zone set 1337
	}
	chain outbound {
		type nat hook output priority -110; policy accept;
		meta mark & 0xfff == 0x539 ct mark set 0x539 accept
		meta skuid { 1337, 101 } ct mark set 0x539 accept
		ip daddr { 10.9.0.0/16 } accept
		ip6 daddr { fe80::/10 } accept
		meta l4proto { tcp, udp } th dport 53 counter redirect to :15053
		tcp dport { 5432 } accept
		ip daddr { 10.0.0.0/8 } tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001
		ip6 daddr { fd00::/8 } tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001
		oifname \"lo\" accept
		tcp dport { 80, 443, 8000-8099 } tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15001
	}
	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		iifname \"lo\" accept
		ct mark & 0xfff == 0x539 accept
		fib daddr type != local accept
		ip saddr { 192.0.2.7 } accept
		ip6 saddr { 2001:db8::/32 } accept
		tcp dport { 9090-9099, 15000, 15006, 15008 } accept
		tcp dport { 22, 8080 } tcp flags & (fin | syn | rst | ack) == syn counter redirect to :15006
	}
}
";
    assert_eq!(undated(&nft_script(&full()), "wish_"), expected);
}

#[test]
fn nft_text_of_names_alone() {
    let wish = Wish { outbound: None, inbound: None, dns: true, ipv6: false, mark: 0x1_0001, ..Wish::default() };
    let expected = "\
add table inet selvedge
delete table inet selvedge
table inet selvedge {
	chain wish_DIGEST {
	}
	chain outbound {
		type nat hook output priority -110; policy accept;
		meta mark & 0xffffffff == 0x10001 ct mark set 0x10001 accept
		meta nfproto ipv6 accept
		meta l4proto { tcp, udp } th dport 53 counter redirect to :15053
	}
}
";
    assert_eq!(undated(&nft_script(&wish), "wish_"), expected);
}

#[test]
fn iptables_text_of_everything() {
    let v4 = "\
*raw
:SELVEDGE_RAW - [0:0]
-I OUTPUT 1 -j SELVEDGE_RAW
-A SELVEDGE_RAW -p tcp -m mark --mark 0x539/0xfff -j CT --zone-orig 1337
-A SELVEDGE_RAW -p tcp -m owner --uid-owner 1337 -j CT --zone-orig 1337
-A SELVEDGE_RAW -p tcp -m owner --uid-owner 101 -j CT --zone-orig 1337
COMMIT
*nat
:SELVEDGE_OUT - [0:0]
:SELVEDGE_IN - [0:0]
:SELVEDGE_W_DIGEST - [0:0]
-I OUTPUT 1 -j SELVEDGE_OUT
-I PREROUTING 1 -j SELVEDGE_IN
-A SELVEDGE_OUT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x539/0xffffffff
-A SELVEDGE_OUT -m mark --mark 0x539/0xfff -j RETURN
-A SELVEDGE_OUT -m owner --uid-owner 1337 -j CONNMARK --set-xmark 0x539/0xffffffff
-A SELVEDGE_OUT -m owner --uid-owner 1337 -j RETURN
-A SELVEDGE_OUT -m owner --uid-owner 101 -j CONNMARK --set-xmark 0x539/0xffffffff
-A SELVEDGE_OUT -m owner --uid-owner 101 -j RETURN
-A SELVEDGE_OUT -d 10.9.0.0/16 -j RETURN
-A SELVEDGE_OUT -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053
-A SELVEDGE_OUT -p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053
-A SELVEDGE_OUT -p tcp --dport 5432 -j RETURN
-A SELVEDGE_OUT -d 10.0.0.0/8 -p tcp --syn -j REDIRECT --to-ports 15001
-A SELVEDGE_OUT -o lo -j RETURN
-A SELVEDGE_OUT -p tcp --syn --dport 80 -j REDIRECT --to-ports 15001
-A SELVEDGE_OUT -p tcp --syn --dport 443 -j REDIRECT --to-ports 15001
-A SELVEDGE_OUT -p tcp --syn --dport 8000:8099 -j REDIRECT --to-ports 15001
-A SELVEDGE_IN -i lo -j RETURN
-A SELVEDGE_IN -m connmark --mark 0x539/0xfff -j RETURN
-A SELVEDGE_IN -m addrtype ! --dst-type LOCAL -j RETURN
-A SELVEDGE_IN -s 192.0.2.7 -j RETURN
-A SELVEDGE_IN -p tcp --dport 9090:9099 -j RETURN
-A SELVEDGE_IN -p tcp --dport 15000 -j RETURN
-A SELVEDGE_IN -p tcp --dport 15006 -j RETURN
-A SELVEDGE_IN -p tcp --dport 15008 -j RETURN
-A SELVEDGE_IN -p tcp --syn --dport 22 -j REDIRECT --to-ports 15006
-A SELVEDGE_IN -p tcp --syn --dport 8080 -j REDIRECT --to-ports 15006
COMMIT
";
    assert_eq!(undated(&iptables_script(&full(), Family::V4), "SELVEDGE_W_"), v4);
    let v6 = iptables_script(&full(), Family::V6);
    assert!(v6.contains("-A SELVEDGE_OUT -d fe80::/10 -j RETURN\n"), "{v6}");
    assert!(v6.contains("-A SELVEDGE_OUT -d fd00::/8 -p tcp --syn -j REDIRECT --to-ports 15001\n"), "{v6}");
    assert!(!v6.contains("10."), "{v6}");
}

/// A text with the digest of its wish taken out, which must be there.
fn undated(text: &str, before: &str) -> String {
    let at = text.find(before).expect("the wish's digest") + before.len();
    let (digest, rest) = text[at..].split_at(16);
    assert!(digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
    format!("{}DIGEST{rest}", &text[..at])
}

#[test]
fn what_a_wish_differs_in_is_in_its_digest() {
    let digest = |wish: &Wish| nft_script(wish).split_once("wish_").expect("a wish").1[..16].to_owned();
    assert_eq!(digest(&full()), digest(&full()));
    assert_ne!(digest(&full()), digest(&Wish::default()));
    assert_ne!(digest(&Wish::default()), digest(&Wish { dns: true, ..Wish::default() }));
}
