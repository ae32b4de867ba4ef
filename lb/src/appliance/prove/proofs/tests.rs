//! What follows from findings, step by step.

use super::*;
use flowgate_xsk::steering::LinkOrigin;

const LEN: u32 = 2048;

fn proofs(zero_copy: ZeroCopy, xdp: XdpModePolicy) -> Proofs {
    Proofs {
        is_on: true,
        file: PathBuf::new(),
        conditions: ProofConditions {
            boot: "this".into(),
            zero_copy: format!("{zero_copy:?}"),
            mode: xdp.into(),
            frame_bytes: 0,
            prove: true,
        },
        zero_copy,
        xdp,
        records: BTreeMap::new(),
        saved: BTreeMap::new(),
        refused: BTreeMap::new(),
    }
}

fn report(interface: &str) -> AttachReport {
    AttachReport {
        interface: interface.into(),
        ifindex: 7,
        queues: 1,
        mtu: 1500,
        mode: XdpMode::Native,
        link: LinkOrigin::Fresh,
        messages: Vec::new(),
    }
}

fn lost(how: &str) -> Outcome {
    Outcome::Lost(how.into())
}

fn state(proofs: &Proofs, interface: &str, mode: Mode) -> (&'static str, String, Option<String>) {
    let ProofStatus { state, detail, fell_back } = proofs.shown(interface, Some(mode), LEN);
    (state, detail, fell_back)
}

#[test]
fn what_is_lost_goes_down_step_by_step_and_stays_where_it_is_proven() {
    let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
    proofs.note_mode(&report("up0"), Mode::ZeroCopy);
    assert!(proofs.is_untried("up0", Mode::ZeroCopy, LEN));
    assert!(proofs.note("up0", Mode::ZeroCopy, LEN, lost("z")));
    assert_eq!((proofs.plan("up0"), proofs.zero_copy()), (Some(Mode::Copy), ZeroCopy::Off));
    proofs.note_mode(&report("up0"), Mode::Copy);
    assert_eq!(state(&proofs, "up0", Mode::Copy), ("unproven", "not tried yet".into(), Some("z".into())));
    assert!(proofs.note("up0", Mode::Copy, LEN, lost("c")));
    assert_eq!(proofs.plan("up0"), Some(Mode::Generic));
    proofs.note_mode(&report("up0"), Mode::Generic);
    assert!(!proofs.note("up0", Mode::Generic, LEN, Outcome::Proven("whole".into())));
    assert!(!proofs.is_open("up0", Mode::Generic, LEN));
    assert_eq!(state(&proofs, "up0", Mode::Generic), ("proven", "whole".into(), Some("z; c".into())));
}

#[test]
fn what_is_lost_in_every_mode_stays_in_the_best_one() {
    for best in Mode::ALL {
        let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
        proofs.note_mode(&report("up0"), best);
        for mode in Mode::ALL.into_iter().filter(|mode| *mode >= best) {
            assert_eq!(proofs.plan("up0"), Some(mode));
            proofs.note("up0", mode, LEN, lost(&mode.to_string()));
        }
        assert_eq!((proofs.plan("up0"), proofs.zero_copy()), (Some(best), ZeroCopy::Auto));
        assert!(!proofs.is_untried("up0", best, LEN), "a start has nothing to try");
        assert!(proofs.is_open("up0", best, LEN), "but the path may be mended");
        let detail = format!("{best}, nor in any other mode: is the MTU of the link smaller?");
        assert_eq!(state(&proofs, "up0", best), ("path", detail, None));
        assert_eq!(proofs.objection("up0"), None);
        assert!(!proofs.note("up0", best, LEN, Outcome::Unproven("silence".into())));
        assert_eq!(state(&proofs, "up0", best).0, "path", "silence says nothing");
        assert!(!proofs.note("up0", best, LEN, Outcome::Proven("whole".into())));
        assert_eq!(state(&proofs, "up0", best), ("proven", "whole".into(), None));
        assert!(!proofs.is_open("up0", best, LEN));
    }
}

#[test]
fn one_packet_memory_has_one_mode_and_the_others_are_tried_in_it() {
    let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
    for interface in ["up0", "fab0"] {
        proofs.note_mode(&report(interface), Mode::ZeroCopy);
    }
    proofs.note("fab0", Mode::ZeroCopy, LEN, Outcome::Proven("whole".into()));
    proofs.note("up0", Mode::ZeroCopy, LEN, lost("z"));
    assert_eq!((proofs.plan("up0"), proofs.plan("fab0")), (Some(Mode::Copy), Some(Mode::Copy)));
    proofs.note_mode(&report("fab0"), Mode::Copy);
    assert!(proofs.is_untried("fab0", Mode::Copy, LEN));
    assert_eq!(state(&proofs, "fab0", Mode::Copy).2, Some("up0: z".into()));
    proofs.note("fab0", Mode::Copy, LEN, lost("c"));
    assert_eq!((proofs.plan("up0"), proofs.plan("fab0")), (Some(Mode::Copy), Some(Mode::Generic)));
    // Where nothing helps the one, both go back.
    for mode in [Mode::Copy, Mode::Generic] {
        proofs.note("up0", mode, LEN, lost("l"));
    }
    assert_eq!((proofs.plan("up0"), proofs.plan("fab0")), (Some(Mode::ZeroCopy), Some(Mode::ZeroCopy)));
}

#[test]
fn zero_copy_that_the_kernel_refuses_is_nothing_to_fall_back_from() {
    let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
    proofs.note_mode(&report("up0"), Mode::ZeroCopy);
    proofs.note_mode(&report("up0"), Mode::Copy);
    assert_eq!((proofs.plan("up0"), proofs.best("up0")), (Some(Mode::Copy), Some(Mode::Copy)));
    assert_eq!(state(&proofs, "up0", Mode::Copy).2, None);
}

#[test]
fn silence_leaves_a_question_open_but_is_no_reason_to_delay_a_start() {
    let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
    proofs.note_mode(&report("up0"), Mode::Copy);
    proofs.note("up0", Mode::Copy, LEN, Outcome::Unproven("silence".into()));
    assert!(proofs.is_open("up0", Mode::Copy, LEN) && !proofs.is_untried("up0", Mode::Copy, LEN));
    assert!(proofs.is_untried("up0", Mode::Copy, 4096), "other frames are another question");
    assert_eq!(state(&proofs, "up0", Mode::Copy), ("unproven", "silence".into(), None));
}

#[test]
fn a_mode_that_was_demanded_is_kept_with_an_objection() {
    let mut demanding = proofs(ZeroCopy::Force, XdpModePolicy::Auto);
    demanding.note_mode(&report("up0"), Mode::ZeroCopy);
    demanding.note("up0", Mode::ZeroCopy, LEN, lost("z"));
    assert_eq!(
        demanding.objection("up0").as_deref(),
        Some(
            "up0 loses packets: z, and xdp.zero_copy is force: set it to auto, set rings.frame_bytes to 4096 or \
             lower the MTU"
        )
    );
    let mut demanding = proofs(ZeroCopy::Auto, XdpModePolicy::Native);
    demanding.note_mode(&report("up0"), Mode::Copy);
    demanding.note("up0", Mode::Copy, LEN, lost("c"));
    let objection = demanding.objection("up0").unwrap();
    assert_eq!(objection, "up0 loses packets: c, and xdp.mode is native: set it to auto or lower the MTU");
    assert_eq!(demanding.plan("up0"), Some(Mode::Generic));
    demanding.refuse("up0", objection.clone());
    assert_eq!((demanding.plan("up0"), demanding.is_open("up0", Mode::Copy, LEN)), (Some(Mode::Copy), false));
    assert_eq!(state(&demanding, "up0", Mode::Copy), ("unproven", objection, None));
}

#[test]
fn another_device_or_mtu_is_proven_anew_and_one_that_is_away_is_remembered() {
    let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
    let known = |proofs: &Proofs| proofs.best("up0").is_some();
    for (now, is_known) in [
        (report("up0"), true),
        (AttachReport { queues: 0, ..report("up0") }, true),
        (AttachReport { mtu: 9000, ..report("up0") }, false),
        (AttachReport { ifindex: 8, ..report("up0") }, false),
        (report("fab0"), false),
    ] {
        proofs.note_mode(&report("up0"), Mode::Copy);
        proofs.forget_others(&[now]);
        assert_eq!(known(&proofs), is_known);
    }
}

#[test]
fn an_interface_that_fell_to_generic_gets_native_mode_again_with_another_mtu() {
    let generic = AttachReport { mode: XdpMode::Generic, ..report("up0") };
    for (now, plan) in [
        (generic.clone(), Some(Mode::Generic)),
        (AttachReport { mtu: 1400, ..generic.clone() }, Some(Mode::Copy)),
        (AttachReport { ifindex: 8, ..generic }, None),
    ] {
        let mut proofs = proofs(ZeroCopy::Auto, XdpModePolicy::Auto);
        proofs.note_mode(&report("up0"), Mode::Copy);
        proofs.note("up0", Mode::Copy, LEN, lost("c"));
        proofs.forget_others(std::slice::from_ref(&now));
        assert_eq!(proofs.plan("up0"), plan, "{now:?}");
        // What the kernel does not give is not asked for again.
        proofs.note_no_native("up0");
        assert_eq!(proofs.plan("up0"), plan.and(Some(Mode::Generic)), "{now:?}");
    }
}

#[test]
fn the_next_process_knows_what_this_one_found_unless_it_is_asked_for_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[admin]\nsocket = \"{}\"\n", folder.path().join("admin.sock").display());
    let config = |more: &str| {
        let path = folder.path().join("flowgate.toml");
        fs::write(&path, format!("{text}{more}")).unwrap();
        Config::load(Some(&path), crate::config::Overrides::default()).unwrap()
    };
    let mut first = Proofs::load(&config(""));
    first.note_mode(&report("up0"), Mode::ZeroCopy);
    first.note("up0", Mode::ZeroCopy, LEN, lost("z"));
    first.note("up0", Mode::Copy, LEN, Outcome::Proven("whole".into()));
    first.save_changes();

    let next = Proofs::load(&config(""));
    assert_eq!((next.plan("up0"), next.zero_copy()), (Some(Mode::Copy), ZeroCopy::Off));
    assert!(!next.is_open("up0", Mode::Copy, LEN));
    for (other, plan) in [
        ("[xdp]\nmode = \"generic\"", None),
        ("[xdp]\nprove = false", Some(Mode::Copy)),
        ("[rings]\nframe_bytes = 4096", Some(Mode::Copy)),
    ] {
        let next = Proofs::load(&config(other));
        assert_eq!((next.plan("up0"), next.zero_copy()), (plan, ZeroCopy::Auto), "{other}");
        assert_eq!(next.is_open("up0", Mode::Copy, LEN), plan.is_some(), "{other}");
    }
    remove(&config("")).unwrap();
    remove(&config("")).unwrap();
    assert_eq!(Proofs::load(&config("")).plan("up0"), None);
}
