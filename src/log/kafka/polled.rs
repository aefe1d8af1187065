//! A producer whose delivery reports are served by a thread of its own.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext, PurgeConfig};

use super::native::Alarm;

/// See the module.
pub(super) struct Polled<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> Polled<C> {
    /// Makes a producer.
    ///
    /// # Errors
    /// A property is unknown, or no thread can be started.
    pub fn new(config: &ClientConfig, context: C) -> Result<Self, KafkaError> {
        let producer: Arc<BaseProducer<C>> = Arc::new(config.create_with_context(context)?);
        let is_over = Arc::new(AtomicBool::new(false));
        let (polled, ends) = (Arc::clone(&producer), Arc::clone(&is_over));
        let thread = std::thread::Builder::new().name("deliveries".to_owned()).spawn(move || {
            let this = std::thread::current();
            let Some(alarm) = Alarm::of(&polled, &this) else { return };
            while !ends.load(Ordering::Acquire) {
                while alarm.is_due() {
                    polled.poll(Duration::ZERO);
                }
                std::thread::park();
            }
        });
        match thread {
            Ok(thread) => Ok(Self { producer, is_over, thread: Some(thread) }),
            Err(error) => {
                tracing::error!("a thread cannot be started: {error}");
                Err(KafkaError::ClientCreation(RDKafkaErrorCode::CriticalSystemResource.to_string()))
            }
        }
    }
}

impl<C: ProducerContext + 'static> Deref for Polled<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for Polled<C> {
    fn drop(&mut self) {
        // What it still holds is nobody's any more.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.is_over.store(true, Ordering::Release);
        // The client ends before its successor begins (PROTOCOL 20): two would fence each other.
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("a thread that serves delivery reports has panicked");
        }
    }
}
