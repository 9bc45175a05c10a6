//! The failpoints of the keeper. They are declared here because the server checks their names, and the keeper is a
//! program, which no other can be linked with.

wardian_sys::failpoints! {
    CreateCloning "keeper.create.cloning" "Before there is a child.";
    CreateCloned "keeper.create.cloned" "The init is on its way.";
    CreateReplied "keeper.create.replied" "It runs, and the server has been told.";
    RunCloning "keeper.run.cloning" "Before there is a child.";
    RunCloned "keeper.run.cloned" "The program is on its way.";
    RunReplied "keeper.run.replied" "It runs, and the server has been told.";
    Exited "keeper.exited" "A process has ended, and nobody has been told.";
    TransferCloned "keeper.transfer.cloned" "A tar is on its way.";
    DestroyKilled "keeper.destroy.killed" "Pid 1 is killed and not reaped.";
    DestroyClosing "keeper.destroy.closing" "The root file system is open.";
    DestroyReplying "keeper.destroy.replying" "It is closed, and the server has not been told.";
}
