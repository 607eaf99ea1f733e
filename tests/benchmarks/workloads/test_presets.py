from benchmarks.workloads.presets import PRESETS


def test_the_reference_step_has_eight_samples_of_each_task_and_no_padding():
    by_task = PRESETS["reference"].sequences()

    for sequences in by_task.values():
        assert [len(sequence.sample_ids) for sequence in sequences] == [8]
        assert all(sequence.num_real_tokens == len(sequence.token_ids_T) for sequence in sequences)


def test_sequences_without_a_number_of_samples_are_filled_to_their_length():
    for sequences in PRESETS["default"].sequences().values():
        assert all(len(sequence.token_ids_T) == 2048 for sequence in sequences)
        assert all(sequence.num_real_tokens > 2048 - 120 for sequence in sequences)
