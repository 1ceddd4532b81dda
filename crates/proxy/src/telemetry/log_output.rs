//! Where access log lines go. A request only puts its line into a bounded queue; one thread per output writes. What the
//! thread cannot keep up with is dropped and counted.

use super::{
    access_log::{Format, Values},
    counter::Count,
    encode::Encoder,
    families::Family,
    otlp::LogExport,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

/// Lines that wait for one output: about 4 MB of usual lines, a tenth of a second at 80 000 requests a second.
const QUEUE: usize = 8192;
/// Lines are written together up to this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// A busy writer rests this long between batches, so that lines come in without a wake-up for each of them.
const REST: Duration = Duration::from_millis(10);
/// How often a file is looked at: has it been rotated away, may it be opened again.
const LOOK: Duration = Duration::from_secs(1);

/// One output, shared by all logs that name it.
#[derive(Debug)]
pub(super) struct Output {
    label: String,
    kind: Kind,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum Kind {
    Lines(SyncSender<Message>),
    Otlp(LogExport),
}

#[derive(Debug, Default)]
struct Counts {
    accepted: Count,
    dropped: Count,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
    /// Answered when everything before it has been written.
    Flush(SyncSender<()>),
}

/// What a writer thread writes to.
pub(super) enum Sink {
    Stdout,
    File(PathBuf),
    #[cfg(test)]
    Test(Box<dyn Write + Send>),
}

impl Output {
    /// Starts the thread, which ends when the output is dropped and everything has been written.
    pub fn lines(label: String, sink: Sink) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let writer = Writer { sink, file: None, looked: None, complained: false, counts: counts.clone() };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&receiver))?;
        Ok(Self { label, kind: Kind::Lines(sender), counts })
    }

    pub fn otlp(label: String, export: LogExport) -> Self {
        Self { label, kind: Kind::Otlp(export), counts: Arc::default() }
    }

    pub fn write(&self, format: &Format, values: &Values<'_>) {
        let accepted = match &self.kind {
            Kind::Lines(sender) => {
                let mut line = Vec::with_capacity(512);
                format.write(values, &mut line);
                sender.try_send(Message::Line(line)).is_ok()
            }
            Kind::Otlp(export) => export.send(format, values),
        };
        if accepted { self.counts.accepted.inc() } else { self.counts.dropped.inc() }
    }

    /// Closes and opens the file again (after rotation). Never blocks.
    pub fn reopen(&self) {
        if let Kind::Lines(sender) = &self.kind {
            // A full queue means a busy writer, which looks at its file by itself.
            let _ = sender.try_send(Message::Reopen);
        }
    }

    /// Waits until what was accepted so far has been written, at most until `deadline`. Blocks the thread.
    pub fn flush(&self, deadline: Instant) {
        let Kind::Lines(sender) = &self.kind else { return };
        let (done, written) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = sender.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            thread::sleep(REST);
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    pub fn encode(&self, out: &mut Encoder) {
        out.sample(Family::AccessLogWritten, &[&self.label], self.counts.accepted.get());
        out.sample(Family::AccessLogDropped, &[&self.label], self.counts.dropped.get());
    }

    #[cfg(test)]
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.accepted.get(), self.counts.dropped.get())
    }
}

struct Writer {
    sink: Sink,
    file: Option<File>,
    looked: Option<Instant>,
    /// The current trouble has been reported.
    complained: bool,
    counts: Arc<Counts>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        while let Ok(first) = queue.recv() {
            let mut next = Some(first);
            let (mut lines, mut full) = (0u64, false);
            while let Some(message) = next.take() {
                match message {
                    Message::Line(line) => {
                        batch.extend_from_slice(&line);
                        lines += 1;
                    }
                    Message::Reopen => {
                        self.write(&mut batch, &mut lines);
                        self.file = None;
                        self.looked = None;
                    }
                    Message::Flush(done) => {
                        self.write(&mut batch, &mut lines);
                        let _ = done.send(());
                    }
                }
                full = batch.len() >= BATCH_BYTES;
                if !full {
                    next = queue.try_recv().ok();
                }
            }
            let busy = lines > 1 && !full;
            self.write(&mut batch, &mut lines);
            if busy {
                thread::sleep(REST);
            }
        }
    }

    fn write(&mut self, batch: &mut Vec<u8>, lines: &mut u64) {
        if *lines > 0 {
            match self.try_write(batch) {
                Ok(()) => self.complained = false,
                Err(error) => {
                    self.counts.dropped.add(*lines);
                    if !std::mem::replace(&mut self.complained, true) {
                        let file = match &self.sink {
                            Sink::File(path) => path.display().to_string(),
                            _ => "standard output".to_owned(),
                        };
                        tracing::warn!(file, %error, "access log lines are lost: they cannot be written");
                    }
                }
            }
        }
        batch.clear();
        *lines = 0;
    }

    fn try_write(&mut self, batch: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Sink::File(path) => {
                if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                    self.looked = Some(Instant::now());
                    if !self.file.as_ref().is_some_and(|file| is_at(file, path)) {
                        self.file = None;
                        self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
                    }
                }
                match &mut self.file {
                    Some(file) => file.write_all(batch),
                    None => Err(io::Error::new(io::ErrorKind::NotFound, "the file could not be opened")),
                }
            }
            #[cfg(test)]
            Sink::Test(out) => out.write_all(batch),
        }
    }
}

/// Whether an open file is still the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        telemetry::{
            Record, Telemetry,
            record::tests::{facts, http_listener},
        },
        worker::WorkerCount,
    };
    use selvedge_compile::snapshot::{AccessLog, LogFormat, LogOutput};
    use std::sync::Mutex;

    const SOON: Duration = Duration::from_secs(20);

    fn log(path: &Path) -> Arc<AccessLog> {
        Arc::new(AccessLog {
            output: LogOutput::File(path.to_string_lossy().into_owned()),
            format: LogFormat::Text("%REQ(:PATH)% %RESPONSE_CODE%".to_owned()),
            per_million: 1_000_000,
            condition: Default::default(),
        })
    }

    fn record(telemetry: &Telemetry, path: &Path, target: &str) {
        let mut listener = http_listener();
        listener.access_log = vec![log(path)];
        let handle = telemetry.listener(&listener);
        let request = http::Request::get(target).body(()).unwrap();
        let mut record = Record::start(facts(telemetry), &request);
        record.listener(&handle, request.headers());
        drop(record.respond(http::Response::new(crate::Body::full("x"))));
        // The output is shared, and written out before its last user lets go.
        telemetry.output(&listener.access_log[0].output).unwrap().flush(Instant::now() + SOON);
    }

    #[test]
    fn files_are_appended_to_and_opened_again() {
        let folder = std::env::temp_dir().join(format!("selvedge-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, rotated) = (folder.join("access.log"), folder.join("access.log.1"));
        let telemetry = Telemetry::new(WorkerCount(1));
        let output = telemetry.output(&log(&path).output).unwrap();
        record(&telemetry, &path, "/one");
        record(&telemetry, &path, "/two");
        std::fs::rename(&path, &rotated).unwrap();
        telemetry.reopen();
        record(&telemetry, &path, "/three");
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "/one 200\n/two 200\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "/three 200\n");
        assert_eq!(output.counts(), (3, 0));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Without tracing, whichever way the caller has named it.
    #[test]
    fn the_trace_of_the_caller_is_logged() {
        const W3C: (&str, &str) = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        const B3: (&str, &str) = ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1");
        const ID: (&str, &str) = ("x-b3-traceid", "64fe8b2a57d3eff7");
        const SPAN: (&str, &str) = ("x-b3-spanid", "e457b5a2e4d86bd1");
        let folder = std::env::temp_dir().join(format!("selvedge-log-trace-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, telemetry, mut listener) =
            (folder.join("access.log"), Telemetry::new(WorkerCount(1)), http_listener());
        let format = LogFormat::Text("%TRACE_ID% %SPAN_ID%".to_owned());
        listener.access_log = vec![Arc::new(AccessLog { format, ..AccessLog::clone(&log(&path)) })];
        let handle = telemetry.listener(&listener);
        for headers in [&[W3C, B3][..], &[B3], &[ID, SPAN], &[ID], &[]] {
            let mut request = http::Request::get("/").body(()).unwrap();
            for (name, value) in headers {
                request.headers_mut().insert(*name, http::HeaderValue::from_static(value));
            }
            let mut record = Record::start(facts(&telemetry), &request);
            record.listener(&handle, request.headers());
            drop(record.respond(http::Response::new(crate::Body::full("x"))));
        }
        telemetry.output(&listener.access_log[0].output).unwrap().flush(Instant::now() + SOON);
        let lines = std::fs::read_to_string(&path).unwrap();
        let ids = [
            "0af7651916cd43dd8448eb211c80319c",
            "80f198ee56343ba864fe8b2a57d3eff7",
            "000000000000000064fe8b2a57d3eff7",
        ];
        let told: Vec<String> = ids.into_iter().chain(["-", "-"]).map(|id| format!("{id} -")).collect();
        assert_eq!(lines.lines().collect::<Vec<_>>(), told);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_loses_lines_and_counts_them() {
        let telemetry = Telemetry::new(WorkerCount(1));
        let path = Path::new("/nonexistent/folder/access.log");
        let output = telemetry.output(&log(path).output).unwrap();
        record(&telemetry, path, "/");
        assert_eq!(output.counts(), (1, 1));
    }

    #[test]
    fn a_stuck_writer_never_blocks_and_drops_are_counted() {
        struct Stuck(Arc<Mutex<()>>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                drop(self.0.lock());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let output = Output::lines("test".to_owned(), Sink::Test(Box::new(Stuck(gate.clone())))).unwrap();
        let Kind::Lines(sender) = &output.kind else { panic!("lines were asked for") };
        let mut refused = 0;
        // The writer may take one batch out before it is stuck.
        for _ in 0..3 * QUEUE {
            refused += u64::from(sender.try_send(Message::Line(b"0123456789abcdef\n".to_vec())).is_err());
        }
        assert!(refused > 0);
        drop(held);
        output.flush(Instant::now() + SOON);
        assert!(sender.try_send(Message::Line(Vec::new())).is_ok());
    }
}
