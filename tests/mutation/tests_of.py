"""
Which tests are asked about which code: the first pattern that matches; quick and near first.
A test is a file, a folder, or a function in a file.
"""

TESTS = {
    "odam_d2/core/boxes.py": ["tests/core/test_boxes.py"],
    "odam_d2/core/bootstrap.py": ["tests/core/test_bootstrap.py"],
    "odam_d2/core/cam.py": [
        "tests/core/test_cam.py",
        "tests/modeling/test_methods.py",
        "tests/modeling/test_published_cams.py",
    ],
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
    "odam_d2/core/mask_regression.py": [
        "tests/core/test_mask_regression.py",
        "tests/modeling/test_rise_in_place.py",
    ],
    "odam_d2/core/masks.py": ["tests/core/test_masks.py", "tests/modeling/test_rise_in_place.py"],
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
    "odam_d2/evaluation/causal*.py": ["tests/evaluation/test_causal_recovery.py"],
    "odam_d2/evaluation/recovery*.py": ["tests/evaluation/test_causal_recovery.py"],
    "odam_d2/evaluation/removal.py": [
        "tests/evaluation/test_removal.py",
        "tests/evaluation/test_causal_recovery.py",
    ],
    "odam_d2/evaluation/sanity*.py": ["tests/evaluation/test_sanity_checks.py"],
    "odam_d2/evaluation/map_similarity.py": ["tests/evaluation/test_sanity_checks.py"],
    "odam_d2/evaluation/found_objects.py": [
        "tests/evaluation/test_causal_recovery.py",
        "tests/evaluation/test_sanity_checks.py",
    ],
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
        "tests/data/test_crowdshapes_scattered.py",
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
    "odam_d2/data/random_labels.py": ["tests/data/test_random_labels.py"],
    "odam_d2/data/*": [
        "tests/data/test_registering.py",
        "tests/data/test_datasets.py",
        "tests/data/test_crowdhuman.py",
        "tests/data/test_crowdshapes.py",
    ],
    "odam_d2/modeling/adapters/anchors.py": [
        "tests/modeling/test_custom_dense_heads.py::test_what_decides_as_detectron2_does_is_explained",
        "tests/modeling/test_training_maps.py::test_the_first_and_the_last_anchor_of_every_level",
        "tests/modeling/test_custom_dense_heads.py",
    ],
    "odam_d2/modeling/adapters/base.py": [
        "tests/modeling/test_outputs_explainer.py",
        "tests/modeling/test_extending.py",
        "tests/modeling/test_nms_families.py::test_nms_is_detectrons_own",
        "tests/modeling/test_nms_families.py::test_odam_nms_chooses_among_the_candidates",
    ],
    "odam_d2/modeling/adapters/cascade.py": [
        "tests/modeling/test_nms_families.py::test_nms_is_detectrons_own",
        "tests/modeling/test_custom_heads.py",
    ],
    "odam_d2/modeling/adapters/*checks.py": [
        "tests/modeling/test_checks.py",
        "tests/modeling/test_custom_heads.py::test_what_is_not_what_the_model_decides_is_refused",
        "tests/modeling/test_custom_dense_heads.py",
        "tests/modeling/test_custom_heads.py::test_other_heads_are_explained",
    ],
    "odam_d2/modeling/adapters/dense*.py": [
        "tests/modeling/test_extending.py::test_what_is_left_out_is_told_at_once",
        "tests/modeling/test_settings.py::test_what_threads_share_stays_as_it_was_checked",
        "tests/modeling/test_custom_dense_heads.py",
        "tests/modeling/test_norms.py",
        "tests/modeling/test_nms_families.py::test_nms_is_detectrons_own",
    ],
    "odam_d2/modeling/adapters/fcos.py": [
        "tests/modeling/test_fcos.py::test_a_given_box_is_read_where_it_would_be_trained",
        "tests/modeling/test_norms.py",
        "tests/modeling/test_fcos.py",
    ],
    "odam_d2/modeling/adapters/head.py": [
        "tests/modeling/test_extending.py",
        "tests/modeling/test_custom_dense_heads.py",
        "tests/modeling/test_custom_heads.py::test_what_is_not_what_the_model_decides_is_refused",
    ],
    "odam_d2/modeling/adapters/outputs.py": ["tests/modeling/test_outputs_explainer.py"],
    "odam_d2/modeling/adapters/pooled_*.py": [
        "tests/modeling/test_custom_heads.py::test_other_heads_are_explained",
        "tests/modeling/test_layers.py::test_one_level_of_a_pyramid_is_told",
        "tests/modeling/test_custom_heads.py",
    ],
    "odam_d2/modeling/adapters/rcnn*.py": [
        "tests/modeling/test_explain.py::test_detections_are_those_of_the_model_bit_for_bit",
        "tests/modeling/test_custom_heads.py::test_other_heads_are_explained",
        "tests/modeling/test_nms_families.py::test_odam_nms_chooses_among_the_candidates",
        "tests/modeling/test_custom_heads.py",
    ],
    "odam_d2/modeling/adapters/retinanet.py": [
        "tests/modeling/test_nms_families.py::test_odam_nms_chooses_among_the_candidates",
        "tests/modeling/test_methods.py",
    ],
    "odam_d2/modeling/adapters/towers.py": [
        "tests/modeling/test_towers.py",
        "tests/modeling/test_norms.py",
        "tests/modeling/test_training_maps.py::test_batch_norm_in_training_takes_the_statistics_of_the_batch",
    ],
    "odam_d2/modeling/adapters/trace.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_on_images.py",
        "tests/modeling/test_nms_families.py",
    ],
    "odam_d2/modeling/adapters/*": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_nms_families.py",
    ],
    "odam_d2/modeling/attribution/d_rise.py": [
        "tests/modeling/test_d_rise.py",
        "tests/modeling/test_methods.py::test_what_cannot_be_is_told",
        "tests/modeling/test_methods.py::test_no_detection_gives_no_map",
    ],
    "odam_d2/core/d_close.py": ["tests/core/test_d_close.py"],
    "odam_d2/core/subset_search.py": ["tests/core/test_subset_search.py"],
    "odam_d2/modeling/attribution/d_close.py": ["tests/modeling/test_superpixel_methods.py"],
    "odam_d2/modeling/attribution/found_again.py": [
        "tests/modeling/test_superpixel_methods.py",
        "tests/modeling/test_d_rise.py",
    ],
    "odam_d2/modeling/attribution/superpixels.py": ["tests/modeling/test_superpixel_methods.py"],
    "odam_d2/modeling/attribution/vps.py": ["tests/modeling/test_superpixel_methods.py"],
    "odam_d2/modeling/attribution/g_came.py": ["tests/modeling/test_published_cams.py"],
    "odam_d2/modeling/attribution/layer_cam.py": ["tests/modeling/test_published_cams.py"],
    "odam_d2/modeling/attribution/output_maps.py": ["tests/modeling/test_outputs.py"],
    "odam_d2/modeling/attribution/position.py": ["tests/modeling/test_position.py"],
    "odam_d2/modeling/attribution/reading.py": ["tests/modeling/test_rise_in_place.py"],
    "odam_d2/modeling/attribution/smooth_grad.py": ["tests/modeling/test_smooth_grad.py"],
    "odam_d2/modeling/attribution/whole_maps.py": [
        "tests/modeling/test_checks.py::test_a_backbone_may_round_otherwise_with_a_graph",
        "tests/modeling/test_layers.py::test_a_detector_that_says_the_same_of_all_images_has_maps_of_zeros",
        "tests/modeling/test_layers.py::test_given_boxes_and_zero_detections",
        "tests/modeling/test_layers.py::test_one_level_of_a_pyramid_is_told",
        "tests/modeling/test_methods.py",
    ],
    "odam_d2/modeling/attribution/windows.py": [
        "tests/modeling/test_norms.py",
        "tests/modeling/test_methods.py::test_cams_equal_plain_autograd",
        "tests/modeling/test_exact.py::test_only_what_a_target_reads_is_differentiated",
    ],
    "odam_d2/modeling/attribution/*": [
        "tests/modeling/test_methods.py",
        "tests/modeling/test_custom_heads.py::test_other_heads_are_explained",
        "tests/modeling/test_custom_heads.py::test_a_pooler_that_does_more_is_explained_by_autograd",
    ],
    "odam_d2/modeling/arguments.py": [
        "tests/modeling/test_arguments.py",
        "tests/modeling/test_explain.py::test_wrong_arguments_get_one_sentence",
        "tests/modeling/test_explain.py::test_boxes_are_given_at_the_output_and_returned_unchanged",
    ],
    "odam_d2/modeling/conditions.py": ["tests/modeling/test_conditions.py"],
    "odam_d2/modeling/evaluation_view.py": ["tests/modeling/test_evaluation_view.py"],
    "odam_d2/modeling/explain.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_outputs.py",
    ],
    "odam_d2/modeling/explainers/*": ["tests/modeling/test_outputs_explainer.py"],
    "odam_d2/modeling/explanation.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_nms_families.py",
        "tests/modeling/test_outputs_explainer.py",
    ],
    "odam_d2/modeling/fcos.py": [
        "tests/modeling/test_settings.py::test_ends_of_what_can_still_be_computed",
        "tests/modeling/test_fcos.py",
    ],
    "odam_d2/modeling/gradient_modes.py": ["tests/modeling/test_outputs.py"],
    "odam_d2/modeling/layers.py": [
        "tests/modeling/test_outputs.py",
        "tests/modeling/test_layers.py",
    ],
    "odam_d2/modeling/map_geometry.py": [
        "tests/modeling/test_layers.py::test_geometry_of_maps",
        "tests/modeling/test_layers.py::test_layers_of_a_resnet",
        "tests/modeling/test_layers.py::test_a_block_of_vit",
        "tests/modeling/test_layers.py::test_a_block_of_swin",
    ],
    "odam_d2/modeling/losses/*": [
        "tests/modeling/test_training_loss.py::test_wrong_values_are_named",
        "tests/modeling/test_settings.py",
        "tests/modeling/test_training_maps.py",
        "tests/modeling/test_training_loss.py",
    ],
    "odam_d2/modeling/meta_arch.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_meta_arch.py",
    ],
    "odam_d2/modeling/nms/*": [
        "tests/modeling/test_nms_families.py",
        "tests/modeling/test_settings.py",
    ],
    "odam_d2/modeling/precision.py": [
        "tests/modeling/test_precision.py::test_what_counts_as_half",
        "tests/modeling/test_precision.py::test_a_copy_in_full_precision_shares_what_it_can",
        "tests/modeling/test_precision.py::test_detections_of_a_model_in_half_precision",
    ],
    "odam_d2/modeling/randomisation.py": ["tests/modeling/test_randomisation.py"],
    "odam_d2/modeling/settings.py": [
        "tests/modeling/test_arguments.py::test_settings_of_another_kind",
        "tests/modeling/test_settings.py",
        "tests/modeling/test_methods.py::test_what_cannot_be_is_told",
        "tests/modeling/test_explain.py",
    ],
    "odam_d2/modeling/state.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_threads.py",
    ],
    "odam_d2/modeling/targets.py": [
        "tests/modeling/test_extending.py::test_what_is_left_out_is_told_at_once",
        "tests/modeling/test_target_names.py",
        "tests/modeling/test_explain.py",
        "tests/modeling/test_exact.py::test_only_what_a_target_reads_is_differentiated",
        "tests/modeling/test_methods.py",
        "tests/modeling/test_outputs_explainer.py::test_logits_are_explained_where_the_adapter_tells_them",
    ],
    "odam_d2/modeling/training/dense.py": [
        "tests/modeling/test_training_maps.py",
        "tests/modeling/test_training_loss.py::test_weight_zero_measures_and_trains_nothing",
        "tests/modeling/test_training_loss.py::test_towers_that_cannot_be_trained_are_refused_at_once",
        "tests/modeling/test_training_loss.py::test_gradient_is_that_of_finite_differences",
    ],
    "odam_d2/modeling/training/*": [
        "tests/modeling/test_training_maps.py",
        "tests/modeling/test_custom_heads.py::test_maps_that_are_trained",
        "tests/modeling/test_training_loss.py::test_weight_zero_measures_and_trains_nothing",
        "tests/modeling/test_training_loss.py::test_gradient_is_that_of_finite_differences",
    ],
    "odam_d2/modeling/views.py": [
        "tests/modeling/test_explain.py",
        "tests/modeling/test_custom_heads.py::test_what_is_not_what_the_model_decides_is_refused",
        "tests/modeling/test_training_loss.py::test_what_a_model_keeps_between_iterations_is_kept",
    ],
    "odam_d2/modeling/*": ["tests/modeling/test_explain.py"],
}
