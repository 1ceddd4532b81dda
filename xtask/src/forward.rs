//! `xtask forward`: bytes in, bytes out, one thread, one `epoll`. What any proxy in user space pays at least.

use anyhow::{Context, Result};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, Event, EventData, EventFlags},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

#[derive(clap::Args)]
pub struct Args {
    /// Where every connection is passed on to.
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
}

/// Bytes read at once; also the most that one direction holds back.
const CHUNK: usize = 64 * 1024;
const LISTENER: u64 = u64::MAX;

pub fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    listener.set_nonblocking(true)?;
    println!("listening {}", listener.local_addr()?);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut forwarder = Forwarder { epoll, to: args.to, pairs: Vec::new(), free: Vec::new(), chunk: vec![0; CHUNK] };
    let mut events: Vec<Event> = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&forwarder.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => forwarder.accept(&listener)?,
                token => forwarder.event((token >> 1) as usize, (token & 1) as usize, event.flags),
            }
        }
    }
}

struct Forwarder {
    epoll: OwnedFd,
    to: SocketAddr,
    pairs: Vec<Option<[Side; 2]>>,
    free: Vec<usize>,
    chunk: Vec<u8>,
}

struct Side {
    socket: TcpStream,
    /// What could not be written to this side yet.
    held: Vec<u8>,
    ended: bool,
}

impl Forwarder {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("cannot accept"),
        };
        let Ok(other) = TcpStream::connect(self.to) else { return Ok(()) };
        let at = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let mut side = 0;
        let pair = [socket, other].map(|socket| {
            let token = EventData::new_u64((at as u64) << 1 | side);
            side += 1;
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            epoll::add(&self.epoll, &socket, token, EventFlags::IN)?;
            anyhow::Ok(Side { socket, held: Vec::new(), ended: false })
        });
        let [a, b] = pair;
        self.pairs[at] = Some([a?, b?]);
        Ok(())
    }

    fn event(&mut self, at: usize, side: usize, flags: EventFlags) {
        let Some(pair) = self.pairs.get_mut(at).and_then(Option::as_mut) else { return };
        let alive = (!flags.contains(EventFlags::OUT) || flush(&mut pair[side]))
            && (!flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
                || pump(pair, side, &mut self.chunk));
        let over = !alive || pair.iter().all(|s| s.ended && s.held.is_empty());
        if over || self.interests(at).is_err() {
            self.pairs[at] = None;
            self.free.push(at);
        }
    }

    /// Reads a side only while the other side takes the bytes.
    fn interests(&self, at: usize) -> rustix::io::Result<()> {
        let Some(Some(pair)) = self.pairs.get(at) else { return Ok(()) };
        if pair.iter().all(|s| s.held.is_empty() && !s.ended && s.held.capacity() == 0) {
            return Ok(());
        }
        for side in 0..2 {
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, !pair[side].ended && pair[1 - side].held.is_empty());
            flags.set(EventFlags::OUT, !pair[side].held.is_empty());
            epoll::modify(&self.epoll, &pair[side].socket, EventData::new_u64((at as u64) << 1 | side as u64), flags)?;
        }
        Ok(())
    }
}

/// Reads once from one side and writes to the other; false when a side is broken.
fn pump(pair: &mut [Side; 2], from: usize, chunk: &mut [u8]) -> bool {
    if pair[from].ended || !pair[1 - from].held.is_empty() {
        return true;
    }
    let read = match (&pair[from].socket).read(chunk) {
        Ok(0) => {
            pair[from].ended = true;
            return pair[1 - from].socket.shutdown(Shutdown::Write).is_ok();
        }
        Ok(read) => read,
        Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    };
    let to = &mut pair[1 - from];
    match (&to.socket).write(&chunk[..read]) {
        Ok(written) => to.held.extend_from_slice(&chunk[written..read]),
        Err(error) if error.kind() == ErrorKind::WouldBlock => to.held.extend_from_slice(&chunk[..read]),
        Err(_) => return false,
    }
    true
}

fn flush(side: &mut Side) -> bool {
    match (&side.socket).write(&side.held) {
        Ok(written) => drop(side.held.drain(..written)),
        Err(error) => return error.kind() == ErrorKind::WouldBlock,
    }
    true
}
