"""Units as microscopes and programs spell them: lengths, reciprocal space, energies."""

import math

import pytest

from emjax.micrographs.units import nm, no_length

LENGTHS = {
    1e-3: "pm PM picometer picometre picometers [p_m]",
    0.1: "A Å \u212b \u00c5 A\u030a a angstrom Angstroms ångström Ångström Ångstroem angstroem "
    r"ANG. \u00C5 \u00c5 \u212B $\AA$ Ã\x85 Ã… &Aring; Å/px A/pixel",
    1: "nm NM nanometer nanometre nanometers nanometres nanometer(s) [n_m] (nm) nm\0 nm/px "
    "nm/pixel nmperpixel ㎚",
    1e3: "um µm \u00b5m \u03bcm UM micron microns micron(s) micrometer micrometre [u_m] "
    r"\u00B5m \u00b5m \u03BCm \u03bcm $\mu$m Âµm Î¼m &micro;m &#181;m µ µm/pixel ㎛ mikrometer",
    1e6: "mm millimeter millimetre",
    1e7: "cm centimeter centimetres",
    1e9: "m M meter metre meters",
    2.54e7: "in inch inches",
}
RECIPROCAL = (
    r"1/nm (1/nm) [1/n_m] nm^-1 nm^(-1) nm^{-1} nm-1 nm**-1 nm⁻¹ nm−1 NM^-1 /nm 1/(nm) $nm^{-1}$ "
    r"$\mathrm{nm}^{-1}$ A^-1 a-1 Å⁻¹ Å^-1 1/Å 1/A 1/\u212b \u00C5^-1 \u00C5\u207B\u00B9 "
    r"1/\u00C5 Ã…^-1 $\AA^{-1}$ 1/um 1/µm 1/μm 1/\u00B5m µm^-1 \u00B5m^-1 1/m m^-1 1/pm pm⁻¹ "
    "1/px 1/pixel pixels^-1 nm^-2 cycles/nm invnm inverseÅ reciprocalnm pernm "
    "rad mrad µrad μrad urad nrad [mrad] milliradians radian deg degrees ° MRAD"
).split()
ENERGY = "eV keV meV MeV [eV] electronvolt kiloelectronvolts".split()
UNKNOWN = [
    "Mm",
    "",
    "px",
    "pixel",
    "pixels",
    "px/nm",
    "?m",
    "\ufffdm",
    "u",
    "s",
    "counts",
    "%",
    "percent",
]


@pytest.mark.parametrize(
    "unit, size", [(unit, size) for size, units in LENGTHS.items() for unit in units.split(" ")]
)
def test_every_spelling_of_a_length(unit, size):
    assert nm(2, unit) == pytest.approx(2 * size) and no_length(unit) == ""
    for encoding in ("utf-8", "latin-1"):
        try:
            encoded = unit.encode(encoding)
        except UnicodeEncodeError:
            continue
        assert nm(2, encoded) == pytest.approx(2 * size), encoding


@pytest.mark.parametrize("unit", [*RECIPROCAL, "1 / nm", "1/ Å", "inverse nm", "nm ^ -1"])
def test_every_spelling_of_reciprocal_space(unit):
    assert math.isnan(nm(2, unit))
    assert no_length("nm", unit) == no_length(unit.encode()) == "reciprocal space"


@pytest.mark.parametrize("unit", ENERGY)
def test_energies(unit):
    assert math.isnan(nm(2, unit)) and no_length(unit) == "an energy axis"


@pytest.mark.parametrize("unit", [*UNKNOWN, None, 3])
def test_other_units_are_unknown_and_refuse_nothing(unit):
    assert math.isnan(nm(2, unit)) and no_length(unit) == ""


@pytest.mark.parametrize("value", [0, -1, "", "text", None, math.inf, math.nan, [1, 2]])
def test_values_that_are_no_length(value):
    assert math.isnan(nm(value, "nm"))
