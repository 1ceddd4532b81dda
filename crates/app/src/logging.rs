//! The process's own log, on standard error, with a filter that can be changed while it runs.

use anyhow::{Context, Result};
use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Changes the filter.
#[derive(Clone)]
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
    now: Arc<Mutex<String>>,
}

/// Begins to log.
pub fn start(filter: &str) -> Result<Level> {
    let parsed = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} is not a valid filter"))?;
    let (layer, handle) = reload::Layer::new(parsed);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(layer).with(lines).try_init().context("the log cannot be started")?;
    Ok(Level { handle, now: Arc::new(Mutex::new(filter.to_owned())) })
}

impl Level {
    pub fn get(&self) -> String {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets another filter; an error says what is wrong with it.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = EnvFilter::try_new(filter)
            .map_err(|e| format!("`{}` is not a valid filter: {e}", filter.escape_debug()))?;
        self.handle.reload(parsed).map_err(|e| e.to_string())?;
        filter.clone_into(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}
