//! Messages in batches, and as librdkafka holds them, alarms of producers, ids of topics and of members: the
//! only unsafe code of Thalweg.
//!
//! rust-rdkafka hands messages out one at a time, in an event and an `Arc` each, and lends them only
//! while its consumer is borrowed; that takes four times as long as the batches of
//! `rd_kafka_consume_batch_queue`, before a copy is made.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::bindings as native;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{IsError, KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaRespErr;

use crate::log::Header;
use crate::model::{Millis, Offset};

/// Messages that one call takes at most.
pub(super) const CALL_MAX: usize = 512;

/// Where what a consumer fetches arrives.
pub(super) struct Queue {
    queue: NonNull<native::rd_kafka_queue_t>,
    consumer: Arc<BaseConsumer>,
}

// SAFETY: librdkafka's queues may be used from any thread; `take` keeps calls from running at once.
unsafe impl Send for Queue {}

impl Queue {
    /// The queue of a consumer that never subscribes: here its rebalances would go unanswered.
    ///
    /// # Errors
    /// The consumer has no group, and thereby no queue.
    pub fn of(consumer: BaseConsumer) -> Result<Self, KafkaError> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client lives; `self.consumer` keeps it alive for longer than the queue.
        let queue = NonNull::new(unsafe { native::rd_kafka_queue_get_consumer(client) });
        let queue = queue.ok_or_else(|| KafkaError::ClientCreation("it has no queue".to_owned()))?;
        Ok(Self { queue, consumer: Arc::new(consumer) })
    }

    /// The consumer itself, for everything but its messages.
    pub fn consumer(&self) -> &BaseConsumer {
        &self.consumer
    }

    /// What has arrived, in order, [`CALL_MAX`] at most; waits up to `timeout` for the first of it.
    pub fn take(&mut self, timeout: Duration) -> Vec<Message> {
        if timeout.is_zero() {
            return self.call(CALL_MAX, 0);
        }
        // A call waits until it has all that it was asked for.
        let mut taken = self.call(1, timeout.as_millis().max(1) as i32);
        if !taken.is_empty() {
            taken.extend(self.call(CALL_MAX - 1, 0));
        }
        taken
    }

    fn call(&mut self, max: usize, timeout_ms: i32) -> Vec<Message> {
        let mut slots = [std::ptr::null_mut(); CALL_MAX];
        let slots = &mut slots[..max];
        // SAFETY: the queue lives, there is room for `max` messages, and nobody else takes from it now.
        let count = unsafe {
            native::rd_kafka_consume_batch_queue(
                self.queue.as_ptr(),
                timeout_ms,
                slots.as_mut_ptr(),
                slots.len(),
            )
        };
        let taken = slots.iter().take(usize::try_from(count).unwrap_or(0));
        let own = |slot: &*mut _| Some(Message { message: NonNull::new(*slot)?, _consumer: self.keep() });
        taken.filter_map(own).collect()
    }

    fn keep(&self) -> Arc<BaseConsumer> {
        Arc::clone(&self.consumer)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it is ours, and the consumer is dropped after it.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// Wakes a thread whenever something comes into the queue of a producer that was empty. Every wait of
/// rust-rdkafka spins through its last millisecond instead.
pub(super) struct Alarm<'a> {
    queue: NonNull<native::rd_kafka_queue_t>,
    /// What librdkafka has a pointer to.
    _woken: &'a Thread,
}

impl<'a> Alarm<'a> {
    /// An alarm for `woken` while it lives. `None`: the client has no queue.
    pub fn of<C: ProducerContext>(producer: &'a BaseProducer<C>, woken: &'a Thread) -> Option<Self> {
        // SAFETY: the client outlives this, and is given a pointer to what does so as well.
        unsafe {
            let queue = NonNull::new(native::rd_kafka_queue_get_main(producer.client().native_ptr()))?;
            let woken_at = std::ptr::from_ref(woken).cast_mut().cast();
            native::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(wake), woken_at);
            Some(Self { queue, _woken: woken })
        }
    }

    /// Whether there is something in the queue. Nobody is woken again before there was not.
    pub fn is_due(&self) -> bool {
        // SAFETY: the queue is ours.
        unsafe { native::rd_kafka_queue_length(self.queue.as_ptr()) > 0 }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is ours, and once this has returned librdkafka wakes nobody any more.
        unsafe {
            native::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, std::ptr::null_mut());
            native::rd_kafka_queue_destroy(self.queue.as_ptr());
        }
    }
}

/// # Safety
/// `woken` points to a thread's handle.
unsafe extern "C" fn wake(_: *mut native::rd_kafka_t, woken: *mut std::ffi::c_void) {
    // SAFETY: as promised.
    unsafe { (*woken.cast::<Thread>()).unpark() };
}

/// Room for the reason why a value is refused, which nobody reads.
const REASON_BYTES: usize = 256;
/// The id of topics of brokers that give none.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// Whether `consumer` is a member of its group, as far as it knows.
pub(super) fn is_member<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    // SAFETY: the client lives; what it answers is a string that ends with a zero, which is ours to free.
    unsafe {
        let id = native::rd_kafka_memberid(consumer.client().native_ptr());
        let is_member = !id.is_null() && *id != 0;
        native::rd_kafka_mem_free(consumer.client().native_ptr(), id.cast());
        is_member
    }
}

/// A value of librdkafka's that is destroyed when it is dropped.
struct Owned<T>(NonNull<T>, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    fn of(made: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, KafkaError> {
        let made = NonNull::new(made);
        made.map(|made| Self(made, destroy)).ok_or(KafkaError::AdminOp(RDKafkaErrorCode::Fail))
    }

    fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: it was made for us, and nobody else has it.
        unsafe { (self.1)(self.get()) };
    }
}

/// What tells a topic from one of the same name before or after it. None: there is no such topic, or the
/// brokers have no ids.
///
/// # Errors
/// The brokers do not answer in time.
pub(super) fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<String>, KafkaError> {
    let Ok(name) = CString::new(topic) else { return Ok(None) };
    let (rk, mut names) = (client.native_ptr(), [name.as_ptr()]);
    let timeout_ms = timeout.as_millis() as i32;
    // SAFETY: the client lives; names are copied; all that is made here is destroyed once, in the reverse
    // order; what is read of an event is read while it lives.
    unsafe {
        let queue = Owned::of(native::rd_kafka_queue_new(rk), native::rd_kafka_queue_destroy)?;
        let topics = native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let topics = Owned::of(topics, native::rd_kafka_TopicCollection_destroy)?;
        let kind = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = native::rd_kafka_AdminOptions_new(rk, kind);
        let options = Owned::of(options, native::rd_kafka_AdminOptions_destroy)?;
        let mut reason = [0; REASON_BYTES];
        native::rd_kafka_AdminOptions_set_request_timeout(
            options.get(),
            timeout_ms,
            reason.as_mut_ptr(),
            reason.len(),
        );
        native::rd_kafka_DescribeTopics(rk, topics.get(), options.get(), queue.get());
        // The answer, or that there was none in time, which comes a little later than asked for.
        let event = native::rd_kafka_queue_poll(queue.get(), timeout_ms.saturating_mul(2));
        let event = Owned::of(event, native::rd_kafka_event_destroy)?;
        let code = native::rd_kafka_event_error(event.get());
        if code.is_error() {
            return Err(KafkaError::AdminOp(code.into()));
        }
        let mut count = 0;
        let result = native::rd_kafka_event_DescribeTopics_result(event.get());
        let described = native::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if described.is_null() || count == 0 {
            return Ok(None);
        }
        let id = native::rd_kafka_TopicDescription_topic_id(*described);
        if native::rd_kafka_error_code(native::rd_kafka_TopicDescription_error(*described)).is_error()
            || id.is_null()
        {
            return Ok(None);
        }
        let text = CStr::from_ptr(native::rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned();
        Ok(Some(text).filter(|text| !text.starts_with(NO_ID)))
    }
}

/// A message, or what librdkafka has to say of a partition in its place.
pub(super) struct Message {
    message: NonNull<native::rd_kafka_message_t>,
    /// Lives for as long as its messages.
    _consumer: Arc<BaseConsumer>,
}

// SAFETY: a message belongs to whoever holds it and may be destroyed on any thread. All that is read of
// it through a shared reference stays as it is, but for its headers, which `PARSING` guards.
unsafe impl Send for Message {}
unsafe impl Sync for Message {}

/// librdkafka parses headers when they are asked for, and keeps them in the message.
static PARSING: Mutex<()> = Mutex::new(());

impl Message {
    fn raw(&self) -> &native::rd_kafka_message_t {
        // SAFETY: it lives until it is dropped, and is not written to.
        unsafe { self.message.as_ref() }
    }

    /// What messages of one partition, and of one consumer, have in common.
    pub fn source(&self) -> (usize, i32) {
        (self.raw().rkt.addr(), self.raw().partition)
    }

    /// Topic and partition; none where librdkafka speaks of something else.
    pub fn place(&self) -> Option<(String, u32)> {
        let topic = NonNull::new(self.raw().rkt)?;
        // SAFETY: a message keeps its topic, whose name is a string that ends.
        let name = unsafe { CStr::from_ptr(native::rd_kafka_topic_name(topic.as_ptr())) };
        Some((name.to_string_lossy().into_owned(), u32::try_from(self.raw().partition).ok()?))
    }

    /// What it says instead of being a record. At [`RDKafkaErrorCode::PartitionEOF`] its offset is the
    /// one behind all that is to be had.
    pub fn error(&self) -> Option<RDKafkaErrorCode> {
        let error: RDKafkaRespErr = self.raw().err;
        error.is_error().then(|| error.into())
    }

    pub fn offset(&self) -> Offset {
        self.raw().offset as Offset
    }

    /// When it was sent or appended; 0 if it does not say.
    pub fn time(&self) -> Millis {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives, and `kind` is written to.
        let time = unsafe { native::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut kind) };
        time.max(0)
    }

    pub fn key(&self) -> Option<&[u8]> {
        let message = self.raw();
        // SAFETY: librdkafka says where the key is, for as long as the message lives.
        unsafe { slice_of(message.key, message.key_len) }
    }

    pub fn value(&self) -> Option<&[u8]> {
        let message = self.raw();
        // SAFETY: librdkafka says where the payload is, for as long as the message lives.
        unsafe { slice_of(message.payload, message.len) }
    }

    pub fn headers(&self) -> Vec<Header> {
        let _parsing = PARSING.lock();
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message lives, and nobody else parses its headers now.
        let answer = unsafe { native::rd_kafka_message_headers(self.message.as_ptr(), &raw mut headers) };
        if answer.is_error() {
            return Vec::new();
        }
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0);
        let header = |index| {
            // SAFETY: the headers live as long as their message, and the others are written to.
            let answer = unsafe {
                native::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size)
            };
            // SAFETY: it has said where name and value are; a name is a string that ends.
            (!answer.is_error()).then(|| unsafe {
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                (name, slice_of(value, size).unwrap_or_default().to_vec())
            })
        };
        (0..).map_while(header).collect()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: it is ours, and its client still lives.
        unsafe { native::rd_kafka_message_destroy(self.message.as_ptr()) };
    }
}

/// # Safety
/// If `start` is not null, `len` bytes from there on must live and stay as they are for `'a`.
unsafe fn slice_of<'a>(start: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}
