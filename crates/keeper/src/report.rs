//! How a child tells the keeper what became of it: frames on a close-on-exec pipe.
//!
//! The pipe's end of file after [`Tag::Ready`], without an error frame, means that the program runs.

use rustix::io::write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// The pid of the process, seen from the host.
    Pid = b'P' as isize,
    /// Only the exec is left. Whoever ends without having said so was killed before.
    Ready = b'R' as isize,
    /// Something went less well than asked.
    Warning = b'W' as isize,
    /// The program does not exist.
    NotFound = b'X' as isize,
    /// It failed.
    Error = b'E' as isize,
}

/// The writing end.
#[derive(Debug)]
pub struct Report(pub OwnedFd);

impl Report {
    /// One frame: tag, length (little endian), text. Shorter than `PIPE_BUF`, so it is written whole.
    pub fn send(&self, tag: Tag, text: &str) {
        let text = &text.as_bytes()[..text.len().min(3000)];
        let mut frame = vec![tag as isize as u8];
        frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
        frame.extend_from_slice(text);
        // The keeper is the only reader; if it is gone, so will we be.
        let _ = write(&self.0, &frame);
    }

    /// The pipe's number.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Frames out of what has been read so far; complete ones are taken off the front.
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
