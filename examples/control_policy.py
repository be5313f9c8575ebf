"""Learn to balance a pole on a cart: a policy search without gradients or a critic.

    pip install gymnasium
    python examples/control_policy.py        # about 10 seconds

The policy pushes the cart left or right by the sign of a weighted sum of what it observes. As the
steps an episode lasts cannot be differentiated, gradient methods need an estimate of them; here the
objective is simply that number. Every candidate of a generation faces the same starts, so that
losses differ by policy and not by luck; the result is then judged on 100 new starts.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from dfo_core import minimize

LONGEST = 500  # steps, when the environment ends an episode
DIM = 4  # cart position and velocity, pole angle and angular velocity


def steps_balanced(env, policy, seed):
    observation, _ = env.reset(seed=seed)
    steps, over = 0, False
    while not over:
        observation, _, fell, timeout, _ = env.step(int(policy @ observation > 0))
        steps += 1
        over = fell or timeout
    return steps


def main(budget: int = 500, episodes: int = 20, test_episodes: int = 100) -> tuple[float, float]:
    env = gymnasium.make("CartPole-v1")

    def mean_steps(policy, seeds):
        return np.mean([steps_balanced(env, policy, seed) for seed in seeds])

    best = minimize(
        lambda policy: -mean_steps(policy, range(episodes)),
        x0=np.zeros(DIM),
        budget=budget,
        target=-LONGEST,
        seed=0,
    )
    test = range(1000, 1000 + test_episodes)
    before, after = mean_steps(np.zeros(DIM), test), mean_steps(best.x, test)
    print(f"{best.nfev} policies tried, {best.message}")
    print(
        f"steps balanced from new starts: {before:.0f} untrained, {after:.0f} of {LONGEST} trained"
    )
    return before, after


if __name__ == "__main__":
    main()
