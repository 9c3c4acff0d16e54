"""The tiny DETR as a kind of model that has an adapter."""

from tiny_detr import TinyDETR

from odam_d2.modeling import Decisions, OutputsAdapter, register_adapter


class KnownDETR(TinyDETR):
    """Has an adapter, which knows the probabilities of all classes."""


@register_adapter(KnownDETR)
class KnownDETRAdapter(OutputsAdapter):
    layer = "backbone"
    num_classes = 3

    def outputs(self, batched_inputs, results):
        found = [result["instances"] for result in results]
        return [Decisions(x.pred_classes, x.class_probs, x.pred_boxes.tensor) for x in found]
