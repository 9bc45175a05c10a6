//! The failpoints of tars on their way through the server.

wardian_sys::failpoints! {
    StreamInMiddle "stream-in.middle" "Some of the tar has gone in.";
    StreamInFinishing "stream-in.finishing" "All of it has, the end is not told.";
    StreamOutMiddle "stream-out.middle" "Some of the tar has come out.";
    StreamOutFinishing "stream-out.finishing" "All of it has.";
}
