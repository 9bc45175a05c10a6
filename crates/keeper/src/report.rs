//! Reports of a child to the keeper: frames on a close-on-exec pipe.
//!
//! The pipe's end of file after [`Tag::Ready`], without an error frame, means that the program runs.

use rustix::io::write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The pid of the process, seen from the host.
    Pid = b'P' as isize,
    /// Only the exec is left. A child that ends without this frame was killed earlier.
    Ready = b'R' as isize,
    /// Something could not be set as requested.
    Warning = b'W' as isize,
    /// The program does not exist.
    NotFound = b'X' as isize,
    /// The launch failed.
    Error = b'E' as isize,
}

/// The write end of the pipe.
#[derive(Debug)]
pub struct Report(pub OwnedFd);

impl Report {
    /// Writes one frame: tag, length (little endian), text. It is shorter than `PIPE_BUF`, so it is written
    /// atomically.
    pub fn send(&self, tag: Tag, text: &str) {
        let text = &text.as_bytes()[..text.len().min(3000)];
        let mut frame = vec![tag as isize as u8];
        frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        frame.extend_from_slice(text);
        // The keeper is the only reader; if it is gone, this child is about to be killed.
        let _ = write(&self.0, &frame);
    }

    /// The pipe's descriptor number.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Takes the complete frames off the front of what has been read so far.
pub fn take_frames(buffer: &mut Vec<u8>) -> Vec<(Tag, String)> {
    let mut frames = Vec::new();
    while let [tag, low, high, rest @ ..] = buffer.as_slice() {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        if rest.len() < length {
            break;
        }
        let tag = match tag {
            b'P' => Tag::Pid,
            b'R' => Tag::Ready,
            b'W' => Tag::Warning,
            b'X' => Tag::NotFound,
            _ => Tag::Error,
        };
        frames.push((tag, String::from_utf8_lossy(&rest[..length]).into_owned()));
        buffer.drain(..3 + length);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let report = Report(writer);
        report.send(Tag::Pid, "17");
        report.send(Tag::NotFound, "exec: no");
        drop(report);
        let mut all = vec![0; 100];
        let n = rustix::io::read(&reader, &mut all).unwrap();
        for cut in 0..n {
            let mut buffer = all[..cut].to_vec();
            let mut frames = take_frames(&mut buffer);
            buffer.extend_from_slice(&all[cut..n]);
            frames.extend(take_frames(&mut buffer));
            assert_eq!(frames, [(Tag::Pid, "17".to_owned()), (Tag::NotFound, "exec: no".to_owned())]);
            assert!(buffer.is_empty());
        }
    }
}
