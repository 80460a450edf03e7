"""The channel over real windows, when a rank has died: here it only stops, and the host is told; real deaths are elsewhere."""

from functools import partial

import pytest
from together import COMM, LAST, RANK, SIZE, asleep, channel_of, needs_three, needs_two, threads, until

from mpiexecutor.channel import ChannelBroken
from mpiexecutor.channel._ring.producer import Gather
from mpiexecutor.channel._ring.recovery import Share

LONG = bytes(range(256)) * 4  # of 1,024 bytes, in slots of 64


@needs_two
@pytest.mark.parametrize("single", [{}, {"producers": "host"}], ids=["any", "host alone puts"])
def test_a_message_that_a_failed_rank_had_claimed_is_named_and_its_slot_is_free_again(single):
    """The last rank claims the second of three messages and stops: the others get the rest, and no room is lost."""
    with channel_of(4, 1, **single) as channel:
        if RANK == 0:
            channel.put_many([(1,), (2,), (3,)])
            assert channel.take()[0] == 1
            COMM.Barrier()
            COMM.Barrier()
            assert channel.recover({LAST}, 10) == [Share(LAST, range(1, 2), received=False)]
            assert channel.take()[0] == 3
            for number in range(4):
                channel.put_nowait((number,))
            assert [channel.take()[0] for _ in range(4)] == [0, 1, 2, 3]
        else:
            COMM.Barrier()
            if RANK == LAST:
                assert channel._takes.ring.claim() is not None
            COMM.Barrier()
        COMM.Barrier()


@needs_three
def test_a_receiver_of_a_failed_ranks_message_takes_the_next_one():
    """Rank 1 stops in the middle of a long message, which rank 2 receives; no other rank could tell it apart from a slow one."""
    with channel_of(4, 64, object) as channel:
        if RANK == 1:
            ring = channel._puts.ring
            out = ring.reserve([len(LONG)], whole=False)
            out.data = Gather([memoryview(LONG)])
            ring.send(out)
            COMM.Barrier()
        elif RANK == 2:
            COMM.Barrier()
            assert channel.take() == "the next one"
        else:
            COMM.Barrier()
            if RANK == 0:
                until(lambda: 2 in asleep(channel, "take"))
                assert channel.recover({1}, 10) == []
                channel.put("the next one")
        COMM.Barrier()


@needs_three
def test_a_message_whose_consumer_died_before_all_of_it_was_there_is_put_anew():
    """Rank 1 stops in the middle of a long message that rank 2 puts: rank 0 gets it, as it was."""
    with channel_of(4, 64, object) as channel, threads() as pool:
        if RANK == 1:
            ring = channel._takes.ring
            COMM.Barrier()
            claimed = []
            until(lambda: claimed.extend(filter(None, [ring.claim()])) or claimed)
            ring.receive(claimed[0])
            COMM.Barrier()
        elif RANK == 2:
            putting = pool.submit(partial(channel.put, LONG))
            COMM.Barrier()
            COMM.Barrier()
            putting.result(60)
        else:
            COMM.Barrier()
            COMM.Barrier()
            if RANK == 0:
                assert channel.recover({1}, 10) == []
                assert channel.take() == LONG
        COMM.Barrier()


@needs_three
def test_one_that_is_stopped_in_the_middle_of_a_message_holds_the_others_up():
    """That is no death: recovery raises an error, and succeeds once the rank has gone on, or has died, too."""
    with channel_of(4, 1) as channel:
        if RANK == 0:
            channel.put_many([(1,), (2,)])
            COMM.Barrier()
            COMM.Barrier()
            with pytest.raises(ChannelBroken, match="are not at rest after 0.1 s"):
                channel.recover({1}, 0.1)
            assert len(channel.recover({1, 2}, 10)) == 2
        else:
            COMM.Barrier()
            if RANK <= 2:
                assert channel._takes.ring.claim() is not None
            COMM.Barrier()
        COMM.Barrier()
        assert SIZE > 2
