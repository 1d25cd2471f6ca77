"""Coverage-guided testing: what a set of inputs makes a network's neurons do, and inputs that make them do more.

    from verifier import coverage

    subject = coverage.subject("model.onnx")
    requirements = coverage.NeuronCoverage().requirements(subject, region)
    print(requirements.report(inputs))          # of 100, 80 covered, 12 proven impossible
    for found in coverage.concolic(requirements, inputs, query=query):
        print(found.met, found.counterexample)

Criteria: ``NeuronCoverage``, ``BoundaryCoverage``, ``SignSignCoverage`` (MC/DC for neurons), ``TopCoverage`` (layer
coverage; ``patterns`` counts). The region is a ``bounds.Box``, for instance that of a property: ``region_of(query,
subject)``. Inputs are ``[N, *subject.shape]``; ``requirements.domain.moved`` puts a point into the region, in the
network's element type. Bounds say which requirements are impossible: ``requirements(subject, region,
bounds.Interval())`` proves fewer than the default, ``Crown()``, and is much quicker on large networks. Generators of
inputs: ``concolic``, and to compare with, ``sampled`` and ``descended``. A covered network is not a verified one:
coverage says how much of a network's behaviour some tests have shown, never that there is no other.
"""

from verifier.coverage.baselines import descended, sampled
from verifier.coverage.criteria import BoundaryCoverage, NeuronCoverage, TopCoverage, patterns
from verifier.coverage.domain import region_of
from verifier.coverage.generation import concolic
from verifier.coverage.requirements import Report, Requirements
from verifier.coverage.running import Subject, subject
from verifier.coverage.signs import SignSignCoverage
from verifier.coverage.suite import Budget, Generated

__all__ = [
    "BoundaryCoverage",
    "Budget",
    "Generated",
    "NeuronCoverage",
    "Report",
    "Requirements",
    "SignSignCoverage",
    "Subject",
    "TopCoverage",
    "concolic",
    "descended",
    "patterns",
    "region_of",
    "sampled",
    "subject",
]
