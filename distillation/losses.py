"""How far the student's embeddings are from the teacher's: one loss a sentence.

Shapes: B sentences, d dimensions. Each loss takes the student's embeddings and the teacher's, both (B, d) in fp32, and
returns (B,) losses, so that a batch split over ranks or pieces still gives the batch's own mean.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mse(student_Bd: torch.Tensor, teacher_Bd: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the dimensions: (B,).

    Source: Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
    2020 (https://arxiv.org/abs/2004.09813), equation 1.
    """
    return (student_Bd - teacher_Bd).square().mean(dim=1)


def cosine(student_Bd: torch.Tensor, teacher_Bd: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity: (B,). The length of an embedding is free.

    Source: one term of DistilBERT's loss (Sanh et al., 2019, https://arxiv.org/abs/1910.01108), section 2.
    """
    return 1 - F.cosine_similarity(student_Bd, teacher_Bd, dim=1)


LOSSES: dict[str, Loss] = {"mse": mse, "cosine": cosine}
