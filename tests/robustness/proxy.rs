//! The network between the members, in user space: one TCP proxy before each
//! member's peer port, and a mode for each direction between two members.
//!
//! Network namespaces would need privileges. All members are told the same
//! address of a member, so a proxy learns from the kernel's tables who called:
//! the socket behind the caller's port belongs to one of our children. Bytes
//! from `a` to `b` obey the link `(a, b)`, whoever of the two has opened the
//! connection; so a link can be cut in one direction.
//!
//! What a proxy cannot do is to lose, repeat or reorder bytes within a
//! connection, which TCP does not show to a program either.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to bytes on their way in one direction between two members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pass,
    /// Each piece of data waits so long.
    Delay(Duration),
    /// Data waits until the mode changes, then arrives: packets are lost and
    /// TCP sends them again.
    Hold,
    /// Connections break and new ones are refused.
    Cut,
}

/// From one member to another, by their numbers in this test.
type Link = (usize, usize);

type Modes = BTreeMap<Link, Mode>;

/// The state of all links. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct Network {
    modes: watch::Sender<Modes>,
    /// The process of each member while it runs.
    processes: Arc<Mutex<BTreeMap<usize, u32>>>,
}

impl Network {
    pub fn new() -> Network {
        Network {
            modes: watch::Sender::new(Modes::new()),
            processes: Arc::default(),
        }
    }

    pub fn set(&self, from: usize, to: usize, mode: Mode) {
        self.modes.send_modify(|modes| {
            modes.insert((from, to), mode);
        });
    }

    /// Back to normal, everywhere.
    pub fn heal(&self) {
        self.modes.send_modify(BTreeMap::clear);
    }

    pub fn set_process(&self, member: usize, process_id: Option<u32>) {
        let mut processes = self.processes.lock().expect("nobody panics with it");
        match process_id {
            Some(id) => processes.insert(member, id),
            None => processes.remove(&member),
        };
    }

    /// Which member holds the other end of a connection that came from `peer`.
    /// `None`: it is gone already, or no member.
    async fn caller(&self, peer: SocketAddr, local: SocketAddr) -> Option<usize> {
        // A child may call before its number is known here.
        const ATTEMPTS: usize = 50;
        const PAUSE: Duration = Duration::from_millis(5);
        for _ in 0..ATTEMPTS {
            let processes = self
                .processes
                .lock()
                .expect("nobody panics with it")
                .clone();
            if let Ok(Some(inode)) = inode_of(peer, local)
                && let Some((member, _)) = processes
                    .iter()
                    .find(|(_, process_id)| has_socket(**process_id, inode))
            {
                return Some(*member);
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}

/// Before the peer port of one member. Dropping it ends its connections.
pub struct Proxy {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Takes connections for `member`, which listens on `target`.
    pub async fn start(
        network: &Network,
        member: usize,
        port: u16,
        target: SocketAddr,
    ) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let network = network.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                // No error of accept concerns the listener itself.
                if let Ok((accepted, peer)) = listener.accept().await {
                    let network = network.clone();
                    connections.spawn(async move {
                        if let Some(caller) = network.caller(peer, address).await {
                            connect(&network, accepted, target, caller, member).await;
                        }
                    });
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Proxy {
            address,
            _tasks: tasks,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// One connection until either side ends or its link is cut. Failures of a
/// socket end it like that: the members are there to notice.
async fn connect(
    network: &Network,
    accepted: TcpStream,
    target: SocketAddr,
    caller: usize,
    member: usize,
) {
    let modes = network.modes.subscribe();
    let is_cut = |link| modes.borrow().get(&link) == Some(&Mode::Cut);
    if is_cut((caller, member)) || is_cut((member, caller)) {
        return;
    }
    let Ok(connected) = TcpStream::connect(target).await else {
        return;
    };
    for stream in [&accepted, &connected] {
        if stream.set_nodelay(true).is_err() {
            return;
        }
    }
    let (accepted_read, accepted_write) = accepted.into_split();
    let (connected_read, connected_write) = connected.into_split();
    let there = pump(
        accepted_read,
        connected_write,
        (caller, member),
        modes.clone(),
    );
    let back = pump(connected_read, accepted_write, (member, caller), modes);
    tokio::select! {
        _ = there => {}
        _ = back => {}
    }
}

/// Copies bytes in one direction as the link's mode wants it.
async fn pump(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    link: Link,
    mut modes: watch::Receiver<Modes>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        tokio::select! {
            readable = from.readable() => readable?,
            () = until_cut(&mut modes, link) => return Ok(()),
        }
        let length = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if !passes(&mut modes, link).await {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits as long as the link's mode wants; false when the connection is to end.
async fn passes(modes: &mut watch::Receiver<Modes>, link: Link) -> bool {
    loop {
        let mode = modes
            .borrow_and_update()
            .get(&link)
            .copied()
            .unwrap_or_default();
        match mode {
            Mode::Pass => return true,
            Mode::Delay(time) => {
                tokio::time::sleep(time).await;
                return true;
            }
            Mode::Cut => return false,
            // An error means that the network is gone.
            Mode::Hold => {
                if modes.changed().await.is_err() {
                    return false;
                }
            }
        }
    }
}

async fn until_cut(modes: &mut watch::Receiver<Modes>, link: Link) {
    let cut = modes.wait_for(|modes| modes.get(&link) == Some(&Mode::Cut));
    // An error means that the network is gone, which cuts as well.
    drop(cut.await);
}

/// The kernel's number of the socket that is bound to `local` and connected to
/// `remote`, both on 127.0.0.1.
fn inode_of(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u64>> {
    let ending = |address: SocketAddr| format!(":{:04X}", address.port());
    let (local, remote) = (ending(local), ending(remote));
    let table = fs::read_to_string("/proc/net/tcp")?;
    let inode = table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let is_it = columns.next()?.ends_with(&local) && columns.next()?.ends_with(&remote);
        is_it.then(|| columns.nth(6)?.parse().ok()).flatten()
    });
    Ok(inode)
}

/// Whether a process has that socket open. An unreadable table means that the
/// process has ended meanwhile.
fn has_socket(process_id: u32, inode: u64) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{process_id}/fd")) else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|metadata| metadata.ino() == inode)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// This process plays both members; it is the caller, member 0.
    async fn pair(network: &Network) -> (Proxy, std::net::TcpListener) {
        network.set_process(0, Some(std::process::id()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let proxy = Proxy::start(network, 1, 0, target).await.unwrap();
        (proxy, listener)
    }

    /// Sends a byte each way, and says which arrived within a second.
    fn exchange(caller: &mut std::net::TcpStream, called: &mut std::net::TcpStream) -> [bool; 2] {
        let mut arrives = |from: bool| {
            let (sender, receiver) = if from {
                (&mut *caller, &mut *called)
            } else {
                (&mut *called, &mut *caller)
            };
            receiver
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            sender.write_all(b"x").is_ok() && receiver.read_exact(&mut [0]).is_ok()
        };
        [arrives(true), arrives(false)]
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_direction_obeys_its_own_mode() {
        let network = Network::new();
        let (proxy, listener) = pair(&network).await;
        let mut caller = std::net::TcpStream::connect(proxy.address).unwrap();
        let mut called = listener.accept().unwrap().0;
        assert_eq!(exchange(&mut caller, &mut called), [true, true]);
        network.set(1, 0, Mode::Hold);
        assert_eq!(exchange(&mut caller, &mut called), [true, false]);
        // What was held arrives late, in addition to the next byte.
        network.heal();
        caller.read_exact(&mut [0]).unwrap();
        assert_eq!(exchange(&mut caller, &mut called), [true, true]);
        network.set(0, 1, Mode::Cut);
        assert_eq!(called.read(&mut [0]).unwrap(), 0, "the connection is open");
        let mut refused = std::net::TcpStream::connect(proxy.address).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    }
}
