"The training step of EBGAN as a plain PyTorch loop: the rival of fastai and its callback. Same nets, passes, losses, data"
import copy
import math
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from ebgan_nb.core import generator, per_sample
from ebgan_nb.losses import discriminator_loss, generator_loss
from ebgan_nb.masks import composite, mask_out
from ebgan_nb.pairs import positives

class OnePass:
    "E and G run once a batch; D moves on the detached edit, then E and G on what D has become"
    def __init__(self, learn):
        "Copies of a fresh learner's nets, and its choices"
        model, chosen = copy.deepcopy(learn.model), learn.adversarial_step
        self.net, self.D, self.dl, self.k = model.net.train(), model.D.train(), learn.dls.train, 0
        self.edit_fraction, self.autocast, self.size = model.edit_fraction, learn.model.autocast, learn.dls.size
        self.weights, self.augment, self.p_positive, self.seed = chosen.weights, chosen.augment, chosen.p_positive, chosen.seed
        lrs = [h['lr'] for h in learn.opt.hypers]
        adam = lambda *modules, lr: torch.optim.Adam([p for m in modules for p in m.parameters()], lr=lr, betas=(.5, .999))
        self.opt_G, self.opt_D = adam(self.net.E, self.net.G, lr=lrs[0]), adam(self.D, lr=lrs[1])
        self.ema_model = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(.999), use_buffers=True)

    def batch(self):
        "A, B, M, what E sees of A, and where the landmarks of A are"
        batch = self.dl.batch(self.k)
        return batch.A, batch.B, batch.M, self.encoder_input(batch), batch.landmarks/self.size

    def encoder_input(self, batch):
        "A augmented, or a positive of A"
        A, B, M, g = batch.A, batch.B, batch.M, generator(self.seed, 'seen', self.k)
        seen, found = positives(self.dl, batch)
        with self.autocast(): seen = self.net.align_exemplar(A, seen)
        rest = ~(found & (per_sample(torch.rand, len(A), generator=g) < self.p_positive).to(found.device))
        if rest.any(): seen[rest] = self.augment(A[rest], B[rest], M[rest], g.of(rest))
        return seen

    def passes(self, A, B, M, seen):
        "All of E and G for N pictures, of which K are edited"
        E, G, N, K = self.net.E, self.net.G, len(A), math.ceil(len(A)*self.edit_fraction)
        with self.autocast():
            P, B = E.landmark_net(A), self.net.align_exemplar(A[:K], B[:K])
            codes = E(torch.cat([seen, B]), torch.cat([M, M[:K]]))
            A_a, A_b = G.dec(G.enc(mask_out(A, M), M), codes).split([N, K])
            code_Ab = E(A_b, M[:K])
        code_A, code_B = codes.float().split([N, K])
        return P, A_a.float(), composite(A_b.float(), A[:K], M[:K]), code_A, code_B, code_Ab.float()

    def discriminate(self, x, M):
        "Logits of the patches that M touches"
        with self.autocast(): logits = self.D(x, M).float()
        return logits[F.adaptive_max_pool2d(M, logits.shape[-2:]) > 0]

    def move_D(self, A, y, M):
        "Eq. 11"
        loss, terms = discriminator_loss(*self.discriminate(torch.cat([A, y.detach()]), torch.cat([M, M])).chunk(2))
        loss.backward()
        self.opt_D.step()
        self.opt_D.zero_grad()
        return terms

    def move_G(self, A, M, landmarks, P, A_a, y, code_A, code_B, code_Ab):
        "Eq. 10, while D rests"
        self.D.requires_grad_(False)
        loss, terms = generator_loss(A, A_a, M, code_B, code_Ab, self.discriminate(y, M[:len(y)]), self.weights, code_A, P, landmarks)
        loss.backward()
        self.opt_G.step()
        self.opt_G.zero_grad()
        self.D.requires_grad_(True)
        self.ema_model.update_parameters(self.net)
        return terms

    def step(self):
        "One batch -> {name: loss}"
        A, B, M, seen, landmarks = self.batch()
        P, A_a, y, *codes = self.passes(A, B, M, seen)
        terms = self.move_D(A[:len(y)], y, M[:len(y)]) | self.move_G(A, M, landmarks, P, A_a, y, *codes)
        self.k += 1
        if not all(v.isfinite() for v in terms.values()): raise FloatingPointError(f'batch {self.k}')
        return terms

class TwoPhases(OnePass):
    "As fastai's `GANLearner` has it: the generator runs without gradients for the critic's turn, and once more for its own"
    def for_critic(self, A, B, M, seen):
        "y, for D"
        with torch.no_grad(): return self.passes(A, B, M, seen)[2]

    def step(self):
        A, B, M, seen, landmarks = self.batch()
        y = self.for_critic(A, B, M, seen)
        terms = self.move_D(A[:len(y)], y, M[:len(y)])
        terms |= self.move_G(A, M, landmarks, *self.passes(A, B, M, seen))
        self.k += 1
        if not all(v.isfinite() for v in terms.values()): raise FloatingPointError(f'batch {self.k}')
        return terms

class LeanTwoPhases(TwoPhases):
    "Two phases, but for the critic's turn only what D looks at is made"
    @torch.no_grad()
    def for_critic(self, A, B, M, seen):
        K = math.ceil(len(A)*self.edit_fraction)
        A, M = A[:K], M[:K]
        with self.autocast(): A_b = self.net.G.dec(self.net.G.enc(mask_out(A, M), M), self.net.E(self.net.align_exemplar(A, B[:K]), M))
        return composite(A_b.float(), A, M)
