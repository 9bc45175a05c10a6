//! The failpoints of containers and their processes.

wardian_sys::failpoints! {
    CreateReserved "create.reserved" "The handle is taken, nothing is written.";
    CreateRecorded "create.recorded" "The record is written, the keeper still listens elsewhere.";
    CreatePaired "create.paired" "The container has its namespaces.";
    CreateCgroup "create.cgroup" "Its limits are set.";
    CreateConnected "create.connected" "It has its network.";
    CreateRootfs "create.rootfs" "Its root file system is made.";
    CreateAnswered "create.answered" "Its init runs.";
    CreateCommitted "create.committed" "The record says created.";
    CreateReplying "create.replying" "Only the reply is left.";
    RunAsking "run.asking" "The keeper does not know of the process.";
    RunAnswered "run.answered" "It runs, the client does not know.";
    PeaRecorded "pea.recorded" "The pea's root file system has a name.";
    PeaCgroup "pea.cgroup" "It has a cgroup.";
    PeaRootfs "pea.rootfs" "Its root file system is made.";
    PeaAsked "pea.asked" "The keeper is starting it.";
    PeaAnswered "pea.answered" "It runs, the client does not know.";
    PeaEnded "pea.ended" "It has ended, everything of it is there.";
    PeaCleaning "pea.cleaning" "Its record is gone, its root file system is not.";
    StreamInBegun "stream-in.begun" "The keeper unpacks, and has got nothing.";
    StreamOutBegun "stream-out.begun" "The keeper packs.";
    StopTermed "stop.termed" "The processes have got SIGTERM.";
    StopKilled "stop.killed" "They have got SIGKILL.";
    StopRecording "stop.recording" "The record does not say so.";
    DestroyKilling "destroy.killing" "Nothing is killed.";
    DestroyAnswered "destroy.answered" "Everything is killed, the record is there.";
    DestroyForgotten "destroy.forgotten" "The record is gone.";
    DestroySweeping "destroy.sweeping" "The root file system is trash; directory and cgroup are there.";
}
