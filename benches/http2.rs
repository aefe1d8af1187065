//! As little of HTTP/2 (RFC 9113) as a client of gRPC needs that makes one call at a time: what is measured
//! is the server, as with the client of REST, and not a framework on the same cores.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// Of a `SETTINGS` or a `PING`.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const WINDOW_MAX: u32 = 0x7fff_ffff;
/// What a connection begins with.
const WINDOW: u32 = 65_535;

/// A connection for calls of one method.
pub struct Caller {
    stream: BufReader<TcpStream>,
    /// Headers of the first call, which both sides then know by number.
    headers: Vec<u8>,
    next_stream: u32,
}

/// A header that the other side is to remember (RFC 7541, 6.2.1), of a name in the static table or of none.
fn remembered(name: u8, text: Option<&str>, value: &str) -> Vec<u8> {
    let mut out = vec![0x40 | name];
    for text in text.into_iter().chain([value]) {
        out.push(u8::try_from(text.len()).ok().filter(|n| *n < 127).expect("a short header"));
        out.extend_from_slice(text.as_bytes());
    }
    out
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

impl Caller {
    /// Connects for calls of `path`, as `/package.Service/Method`.
    pub fn connect(address: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let mut hello = PREFACE.to_vec();
        let settings = [&INITIAL_WINDOW_SIZE[..], &WINDOW_MAX.to_be_bytes()].concat();
        frame(&mut hello, SETTINGS, 0, 0, &settings);
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW).to_be_bytes());
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(&hello).expect("sent");
        // POST and http have numbers of their own; path, authority, content-type and te get some.
        let headers = [
            vec![0x83, 0x86],
            remembered(4, None, path),
            remembered(1, None, "bench"),
            remembered(31, None, "application/grpc"),
            remembered(0, Some("te"), "trailers"),
        ];
        Self { stream, headers: headers.concat(), next_stream: 1 }
    }

    /// Sends a message, and returns the one that is answered.
    ///
    /// # Panics
    /// The answer has none, or the connection ends.
    pub fn call(&mut self, message: &[u8]) -> Vec<u8> {
        let mut request = Vec::with_capacity(message.len() + 64);
        frame(&mut request, HEADERS, END_HEADERS, self.next_stream, &self.headers);
        // The same four, by the numbers that they were given.
        self.headers = vec![0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        let head = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
        frame(&mut request, DATA, END_STREAM, self.next_stream, &[&head, message].concat());
        self.stream.get_mut().write_all(&request).expect("sent");
        self.next_stream += 2;
        let mut answer = self.receive();
        assert!(answer.len() >= 5, "an error instead of an answer");
        answer.drain(..5);
        answer
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).expect("its payload");
            match kind {
                DATA => answer.append(&mut payload),
                HEADERS => {}
                SETTINGS | PING if flags & ACK == 0 => {
                    let echo = if kind == PING { &payload[..] } else { &[] };
                    let mut reply = Vec::new();
                    frame(&mut reply, kind, ACK, 0, echo);
                    self.stream.get_mut().write_all(&reply).expect("sent");
                }
                SETTINGS | PING | WINDOW_UPDATE => {}
                other => panic!("a frame of kind {other}"),
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return answer;
            }
        }
    }
}
