"""Which tests are asked about which code: the first pattern that matches; quick and near first."""

TESTS = {
    "odam_d2/core/boxes.py": ["tests/core/test_boxes.py"],
    "odam_d2/core/cam.py": ["tests/core/test_cam.py", "tests/modeling/test_methods.py"],
    "odam_d2/core/cell_gradients.py": [
        "tests/modeling/test_training_maps.py",
        "tests/modeling/test_training_loss.py",
    ],
    "odam_d2/core/dense_windows.py": [
        "tests/core/test_dense_windows.py",
        "tests/modeling/test_exact.py",
    ],
    "odam_d2/core/errors.py": ["tests/core/test_perturbation.py"],
    "odam_d2/core/full_convolution.py": [
        "tests/core/test_dense_windows.py",
        "tests/modeling/test_norms.py",
        "tests/modeling/test_exact.py",
    ],
    "odam_d2/core/gradients.py": ["tests/core/test_gradients.py", "tests/modeling/test_outputs.py"],
    "odam_d2/core/heatmap.py": [
        "tests/core/test_heatmap.py",
        "tests/core/test_dense_windows.py",
        "tests/core/test_cam.py",
    ],
    "odam_d2/core/metrics.py": ["tests/core/test_metrics.py"],
    "odam_d2/core/nms.py": ["tests/core/test_nms.py", "tests/modeling/test_nms_families.py"],
    "odam_d2/core/odam_train.py": [
        "tests/core/test_odam_train.py",
        "tests/modeling/test_training_loss.py",
    ],
    "odam_d2/core/perturbation.py": [
        "tests/core/test_perturbation.py",
        "tests/evaluation/test_explanation_evaluator.py",
    ],
    "odam_d2/core/pooled_windows.py": ["tests/core/test_roi_align.py"],
    "odam_d2/core/pooled_gradients.py": [
        "tests/core/test_pooled_gradients.py",
        "tests/modeling/test_exact.py",
    ],
    "odam_d2/core/probabilities.py": [
        "tests/core/test_probabilities.py",
        "tests/modeling/test_confident.py",
    ],
    "odam_d2/core/ranges.py": ["tests/modeling/test_settings.py", "tests/modeling/test_methods.py"],
    "odam_d2/core/resample.py": ["tests/structures/test_odam_maps.py"],
    "odam_d2/core/rise.py": ["tests/core/test_rise.py", "tests/modeling/test_d_rise.py"],
    "odam_d2/core/roi_align.py": ["tests/core/test_roi_align.py", "tests/modeling/test_explain.py"],
    "odam_d2/core/targets.py": ["tests/core/test_targets.py", "tests/modeling/test_outputs.py"],
    "odam_d2/core/window_cells.py": [
        "tests/core/test_dense_windows.py",
        "tests/modeling/test_training_maps.py",
    ],
    "odam_d2/core/windows.py": [
        "tests/core/test_windows.py",
        "tests/core/test_heatmap.py",
        "tests/core/test_dense_windows.py",
        "tests/core/test_roi_align.py",
    ],
    "odam_d2/core/*": ["tests/core"],
    "odam_d2/structures/*": ["tests/structures/test_odam_maps.py"],
    "odam_d2/evaluation/crowd*.py": [
        "tests/evaluation/test_crowd_protocol.py",
        "tests/evaluation/test_crowd_loops.py",
        "tests/evaluation/test_crowd_evaluator.py",
        "tests/data/test_crowdhuman.py",
    ],
    "odam_d2/evaluation/explanation_files.py": [
        "tests/evaluation/test_explanation_files.py",
        "tests/evaluation/test_explanation_evaluator.py",
    ],
    "odam_d2/evaluation/known_causes.py": ["tests/evaluation/test_known_causes.py"],
    "odam_d2/evaluation/regions.py": [
        "tests/evaluation/test_regions.py",
        "tests/evaluation/test_explanation_evaluator.py",
    ],
    "odam_d2/evaluation/rows.py": [
        "tests/evaluation/test_rows.py",
        "tests/evaluation/test_explanation_evaluator.py",
        "tests/tools/test_evaluate_explanations.py",
    ],
    "odam_d2/evaluation/*": [
        "tests/evaluation/test_explanation_evaluator.py",
        "tests/evaluation/test_known_causes.py",
        "tests/tools/test_evaluate_explanations.py",
    ],
    "odam_d2/analysis/ap_costs.py": [
        "tests/analysis/test_ap_costs.py",
        "tests/analysis/test_error_types.py",
        "tests/tools/test_analyze_errors.py",
    ],
    "odam_d2/analysis/error_types.py": [
        "tests/analysis/test_error_types.py",
        "tests/analysis/test_ap_costs.py",
    ],
    "odam_d2/analysis/*": [
        "tests/analysis/test_explained_errors.py",
        "tests/tools/test_analyze_errors.py",
    ],
    "odam_d2/data/crowdshapes/*": [
        "tests/data/test_crowdshapes_draws.py",
        "tests/data/test_crowdshapes.py",
    ],
    "odam_d2/data/*checks.py": [
        "tests/data/test_dataset_checks.py",
        "tests/data/test_picture_mapper.py",
    ],
    "odam_d2/data/crowdhuman.py": [
        "tests/data/test_crowdhuman.py",
        "tests/data/test_registering.py",
    ],
    "odam_d2/data/json_lines.py": [
        "tests/data/test_crowdhuman.py",
        "tests/data/test_dataset_checks.py",
    ],
    "odam_d2/data/mapper.py": ["tests/data/test_picture_mapper.py", "tests/data/test_pictures.py"],
    "odam_d2/data/pictures.py": [
        "tests/data/test_pictures.py",
        "tests/data/test_picture_mapper.py",
    ],
    "odam_d2/data/*": [
        "tests/data/test_registering.py",
        "tests/data/test_datasets.py",
        "tests/data/test_crowdhuman.py",
        "tests/data/test_crowdshapes.py",
    ],
}
